"""What a callback may do. The loop calls callbacks in the order of the recipe; none may change the training.

    class Bell(Callback):
        def on_end(self, metrics):
            self.run.out.log("ding")

`on_start` comes once per process, also after a resume (`run.step` > 0 then); a callback that keeps state over steps
returns it from `state_dict` (JSON values), and gets it back through `load_state_dict` before `on_start`. A run that is rolled
back to an earlier state closes its callbacks and starts them again at that step. A probe runs its own no-grad forward
(feebcore/train/probing.py); random numbers that it draws do not reach the training, whose generator is seeded anew each step.

In a run of several ranks, callbacks live on the first rank alone: they must not wait for the others. What must run on every
rank, or change the course of the training, is a LoopCallback of the engine: validation, checkpointing, rollback, garbage collection.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.data.tokenizers import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from feebcore.artifacts import StageOutput
    from feebcore.config import PartConfig
    from feebcore.protocols import Batch, BuildContext
    from feebcore.train.config import TrainSection


@dataclass
class RunContext:
    """What callbacks see of a run. step: optimizer steps done. model: the module that is trained, never compiled.

    data: `data.batch(step)`, counted from 0, is the whole batch of a step (all ranks), on the CPU; the same step, the
    same batch. Reading a batch does not affect the training data loader. subscribers: what `publish` calls.
    flops_per_token: of training, model and objective.
    metrics of `on_step_end`: step, loss (nats per target), lr, grad_norm, tokens, seconds, data_wait, elapsed.
    """

    section: TrainSection
    model: nn.Module
    device: torch.device
    folder: Path
    out: StageOutput
    name: str = ""
    step: int = 0
    tokenizer_folder: Path | None = None
    precision: str = "fp32"
    flops_per_token: float = 0.0
    data: Any = None
    subscribers: list[Callable[[str, int, dict[str, Any]], None]] = field(default_factory=list)
    ends_at: int | None = None

    @property
    def last_step(self) -> int:
        """max_steps, or the step after which the run ends earlier, known when `on_step_end` is called for it."""
        return self.section.max_steps if self.ends_at is None else self.ends_at

    def publish(self, probe: str, step: int, values: dict[str, Any]) -> None:
        """Pass measurements of a probe to loggers such as wandb. values: JSON values."""
        for subscriber in self.subscribers:
            subscriber(probe, step, values)

    def tokenizer(self) -> Any:
        """The run's tokenizer, None when there is none."""
        if self.tokenizer_folder is None:
            return None
        return load_tokenizer(self.tokenizer_folder)


class Callback:
    """Does nothing; override what you need. config: the part's options. context: empty."""

    run: RunContext

    def __init__(self, config: PartConfig | None = None, context: BuildContext | None = None) -> None:
        self.config: Any = config

    def on_start(self, run: RunContext) -> None:
        """Before the first step of this process."""
        self.run = run

    def on_batch(self, step: int, batch: Batch) -> None:
        """Before the forward pass of a step that follows `step` steps (0: the very first): its batch, this rank's rows.
        Called only where it is overridden; the tensors must not be changed."""

    def on_gradients(self, step: int, scale: Tensor | float = 1.0) -> None:
        """Before optimizer step `step` (counted from 1) changes the weights: `p.grad` times `scale`, a scalar on the device, is what
        the optimizer uses, clipping included; scaling it here would spoil the step. Not called for a step that is skipped. Called only
        where it is overridden."""

    def due(self, step: int) -> bool:
        """Whether `on_step_end(step)` must come before the next step begins, as the model or a file is looked at then. Where no callback
        is due, steps are not waited for, and `on_step_end` comes later, for each of them in turn. Default: wherever it is overridden."""
        return type(self).on_step_end is not Callback.on_step_end

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        """After optimizer step `step` (counted from 1); at once if it is `due`."""

    def on_validation(self, step: int, metrics: dict[str, Any]) -> None:
        """After a validation: loss (nats per token), bits_per_byte (an estimate, or the final score)."""

    def on_save(self, step: int) -> None:
        """Before a checkpoint is written: bring files up to date."""

    def on_end(self, metrics: dict[str, Any]) -> None:
        """After the last step and the final score; metrics are those of the manifest."""

    def on_close(self) -> None:
        """Always the last call, also after an error or a stop: close what is open."""

    def state_dict(self) -> dict[str, Any]:
        """JSON values that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` returned when the checkpoint was written."""


class LoopCallback(Callback):
    """A part of the engine on every rank, called after the recipe's callbacks. It may change the course of the training."""

    def due(self, step: int) -> bool:
        """Whether the numbers of the steps so far must be known, and the recipe's callbacks told, before `on_step_end(step)`; that always
        comes at once, without metrics."""
        return False

    def on_step_begin(self, step: int) -> None:
        """Before optimizer step `step`, counted from 0."""

    def on_rollback(self, reason: str) -> None:
        """A step asked to continue from an earlier state; `on_start` follows."""

    def on_train_end(self) -> None:
        """After the last step, or before a stop: returns when everything is on disk."""


def make_row(step: int, split: str, metrics: dict[str, Any]) -> dict[str, Any]:
    """One row of the training log: floats with six significant digits, None for what is not finite (JSON has no NaN)."""
    return {"step": step, "split": split} | {k: _plain(v) for k, v in metrics.items() if k != "step"}


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None
