"""What probes have in common: when they measure, and their file of rows, probes/<name>.jsonl in the run's folder."""

from __future__ import annotations

import json
import math
import os
from typing import Any

from feeb_tracking.row_files import append, keep_until
from feebcore.protocols import BuildContext
from feebcore.train import dtensor
from feebcore.train.callbacks import Callback, RunContext

FOLDER = "probes"


class Probe(Callback):
    """Writes `measure(step)` every `every` steps and after the last one; a probe of the model also before the first.

    Each step has one row, whatever kills and resumes lie between. State: none, unless a subclass has some.
    """

    name: str
    of_model = True  # it runs the model, so the model must be whole

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__(config, context)
        self.every: int = config.every
        self.active = True

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.path = run.folder / FOLDER / f"{self.name}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        keep_until(self.path, run.step or -1)  # a row of step 0 is made anew
        self.active = not (self.of_model and is_sharded(run))
        if not self.active:
            run.out.log(f"callback {self.name}: the model is sharded (parallel.strategy: fsdp), so it measures at the end only")
        elif self.of_model and run.step == 0:
            self.write(0, self.measure(0))

    def due(self, step: int) -> bool:
        return self.active and (step % self.every == 0 or step == self.run.last_step)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if self.due(step):
            self.write(step, self.measure(step))

    def on_end(self, metrics: dict[str, Any]) -> None:
        if not self.active and self.of_model:  # by now one process has the whole model
            keep_until(self.path, self.run.step - 1)
            self.write(self.run.step, self.measure(self.run.step))

    def on_save(self, step: int) -> None:
        if self.path.exists():
            with open(self.path, "rb") as stream:
                os.fsync(stream.fileno())

    def measure(self, step: int) -> dict[str, Any]:
        """Values after `step` steps: JSON values, floats in any precision."""
        raise NotImplementedError

    def write(self, step: int, values: dict[str, Any]) -> None:
        row = rounded({"step": step} | values)
        append(self.path, json.dumps(row) + "\n")
        self.run.publish(self.name, step, {k: v for k, v in row.items() if k != "step"})


def is_sharded(run: RunContext) -> bool:
    """Whether weights are spread over ranks: no rank can run the model alone. A single rank has them all, whatever the strategy."""
    return any(dtensor.is_sharded(p) for p in run.model.parameters())


def rounded(value: Any) -> Any:
    """JSON values with floats of six significant digits; None for what is not finite."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
