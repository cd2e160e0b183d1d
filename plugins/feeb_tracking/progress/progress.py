"""A progress line with loss and tokens per second."""

from __future__ import annotations

from typing import Any

from feebcore.train.callbacks import Callback


class ProgressBar(Callback):
    """State: none that matters; tokens per second are a running mean of this process."""

    rate = 0.0

    def due(self, step: int) -> bool:
        return False  # the trainer reports every second

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        run = self.run
        tokens = run.section.batch_size * run.section.seq_len / max(metrics["seconds"], 1e-9)
        self.rate = 0.9 * self.rate + 0.1 * tokens if self.rate else tokens
        run.out.progress(step, run.section.max_steps, "steps", run.name or "training", loss=round(metrics["loss"], 4), tokens_per_second=round(self.rate))
