"""Python's garbage collection at fixed steps, the same on every rank: a rank that collects alone makes the others wait."""

from __future__ import annotations

import gc
from typing import Any

from feebcore.train.callbacks import LoopCallback, RunContext


class GarbageCollection(LoopCallback):
    """Collects every `every` steps and never in between; what exists at the start (torch, the model) is left out for good."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.was_enabled = gc.isenabled()

    def on_start(self, run: RunContext) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step % self.every == 0:
            gc.collect()

    def on_close(self) -> None:
        gc.unfreeze()
        if self.was_enabled:
            gc.enable()
