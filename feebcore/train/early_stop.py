"""When a run ends before max_steps: its training loss has come down to `stop_at_loss`, or does not fall any more.

Judged every 10 steps by the mean loss of the last 10, at whatever steps numbers are fetched besides, so that a run ends after the
same step however it is watched, killed and resumed, on every rank.
"""

from __future__ import annotations

from feebcore.train.config import TrainSection
from feebcore.train.state import TrainState

EVERY = 10
FALL = 0.01
"""A loss that is lower than the lowest one before by this fraction of it has fallen."""


class EarlyStop:
    """The options of a run. It keeps nothing itself: what it remembers is in the TrainState, and so in checkpoints."""

    def __init__(self, section: TrainSection) -> None:
        self.target, self.patience = section.stop_at_loss, section.stop_when_flat
        self.active = bool(self.target or self.patience)

    def due(self, step: int) -> bool:
        """Whether the loss of this step, counted from 1, must be known before the next."""
        return self.active and step % EVERY == 0

    def judge(self, step: int, state: TrainState) -> str:
        """Why the run ends after this step, whose loss is the last of `state.recent`, as a sentence, and in `state.ended`; '' where it goes on."""
        loss = recent_loss(state)
        if self.target and loss <= self.target:
            state.ended = "loss"
            return f"the run ends after step {step}: its training loss is {loss:.4g} (stop_at_loss {self.target:g})"
        elif state.lowest is None or loss < state.lowest[1] - FALL * abs(state.lowest[1]):
            state.lowest = (step, loss)
        elif self.patience and step - state.lowest[0] >= self.patience:
            state.ended = "flat"
            return f"the run ends after step {step}: its training loss is flat at {loss:.4g} (stop_when_flat {self.patience})"
        return ""


def recent_loss(state: TrainState) -> float:
    """Mean of the last 10 losses, inf before the first."""
    losses = list(state.recent)[-EVERY:]
    return sum(losses) / len(losses) if losses else float("inf")
