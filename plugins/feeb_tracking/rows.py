"""Rows of the training log: the mean loss since the last row every `every` steps, and the metrics of that step."""

from __future__ import annotations

import math
from typing import Any

from feeb_tracking.options import LogConfig
from feebcore.protocols import BuildContext
from feebcore.train.callbacks import Callback, RunContext, make_row


class RowLogger(Callback):
    """Calls `write(row)` for every row. State: what has been summed since the last row.

    loss, and nats where the objective reports the next token's: means over the steps since the last row, per target. data_wait:
    seconds of these steps spent waiting for data. tokens: all so far. elapsed: seconds in the loop so far. Rows of validations
    have split 'validation'.
    """

    def __init__(self, config: LogConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.sums = zero_sums(0)

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.every = self.config.every or run.section.log_every

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.run.last_step

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        sums = self.sums
        if math.isfinite(metrics["loss"]):  # else the step was skipped
            sums["loss"] += metrics["loss"]
            sums["nll"] = sums.get("nll", 0.0) + metrics.get("nll", 0.0)
            sums["steps"] += 1
        sums["seconds"] += metrics["seconds"]
        sums["data_wait"] += metrics["data_wait"]
        if self.due(step):
            shown = {k: v for k, v in metrics.items() if k not in ("step", "seconds")}
            rate = (metrics["tokens"] - sums["tokens_before"]) / sums["seconds"] if sums["seconds"] else 0.0
            mean = lambda key: sums.get(key, 0.0) / sums["steps"] if sums["steps"] else math.nan  # noqa: E731
            means = {"loss": mean("loss")} | ({"nll": mean("nll")} if "nll" in metrics else {})
            means |= {"data_wait": sums["data_wait"], "tokens_per_second": rate}
            self.write(make_row(step, "train", shown | means))
            self.sums = zero_sums(metrics["tokens"])

    def on_validation(self, step: int, metrics: dict[str, Any]) -> None:
        self.write(make_row(step, "validation", metrics))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sums = state["sums"]

    def write(self, row: dict[str, Any]) -> None:
        raise NotImplementedError


def zero_sums(tokens: int) -> dict[str, float]:
    return {"loss": 0.0, "nll": 0.0, "steps": 0, "seconds": 0.0, "data_wait": 0.0, "tokens_before": tokens}
