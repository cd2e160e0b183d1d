"""Where a training step spends its time: a torch profiler trace (open it in https://ui.perfetto.dev) and a table of operators."""

from __future__ import annotations

import shutil
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from feeb_tracking.profile import ProfileConfig
from feebcore.files import write_atomic
from feebcore.protocols import BuildContext
from feebcore.train.callbacks import Callback, RunContext

FOLDER = "profile"
ROWS = 30
"""Operators in the table."""


class Profile(Callback):
    """Writes profile/trace.json.gz and profile/operators.txt after step `start` + `steps` of this process. State: none."""

    def __init__(self, config: ProfileConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.profiler: profile | None = None

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.first = run.step + self.config.start

    def due(self, step: int) -> bool:
        return step in (self.first, self.first + self.config.steps)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if step == self.first:
            self.start()
        elif step == self.first + self.config.steps:
            self.stop(step)

    def start(self) -> None:
        cuda = [ProfilerActivity.CUDA] if self.run.device.type == "cuda" else []
        self.profiler = profile(activities=[ProfilerActivity.CPU, *cuda], profile_memory=self.config.memory)
        self.profiler.start()

    def stop(self, step: int) -> None:
        if self.profiler is None:
            return
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
        self.profiler.stop()
        folder = self.run.folder / FOLDER
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.profiler.export_chrome_trace(str(folder / "trace.json.gz"))
        order = "self_cuda_time_total" if self.run.device.type == "cuda" else "self_cpu_time_total"
        write_atomic(folder / "operators.txt", self.profiler.key_averages().table(sort_by=order, row_limit=ROWS) + "\n")
        self.run.out.log(f"profile of steps {self.first + 1} to {step}: {FOLDER}/trace.json.gz")
        self.profiler = None

    def on_end(self, metrics: dict[str, Any]) -> None:
        self.stop(self.run.step)  # a run that ends earlier has a shorter profile

    def on_close(self) -> None:
        if self.profiler is not None:
            self.profiler.stop()
        self.profiler = None
