"""What the training loop itself remembers: counters, the last losses, and what is still due."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

RECENT = 50
"""Losses that are remembered, to tell a spike by."""


@dataclasses.dataclass
class TrainState:
    """The loop's own part of a checkpoint. step: optimizer steps done."""

    step: int = 0
    tokens: int = 0  # of all ranks
    elapsed: float = 0.0  # seconds in the loop, earlier processes included
    timed_tokens: int = 0  # tokens and seconds of steps, without the first of each process
    timed_seconds: float = 0.0
    waited_seconds: float = 0.0  # of timed_seconds: waiting for data
    anomalies_in_row: int = 0  # spikes and non-finite steps since the last good step
    anomalous_steps: list[int] = dataclasses.field(default_factory=list)
    rollbacks: list[int] = dataclasses.field(default_factory=list)  # anomalous steps that the run was rolled back from
    began_at: int = 0  # step of the checkpoint of another run that this one began at
    data_offset: int = 0  # batches left out by rollbacks
    validation_due: bool = False  # the validation after this step has not finished
    validation: tuple[int, float] | None = None  # the last one: step and loss
    lowest: tuple[int, float] | None = None  # step and loss, as stop_when_flat judges them
    ended: str = ""  # why the run ends before max_steps: loss, flat
    recent: collections.deque[float] = dataclasses.field(default_factory=lambda: collections.deque(maxlen=RECENT))  # losses

    def state_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"recent": list(self.recent)}

    @classmethod
    def from_state_dict(cls, saved: dict[str, Any]) -> TrainState:
        pairs = {key: (pair[0], pair[1]) if (pair := saved.get(key)) else None for key in ("validation", "lowest")}
        return cls(**saved | pairs | {"recent": collections.deque(saved["recent"], maxlen=RECENT)})
