"""Training speed and what limits it: utilization, tokens per second, waiting for data, time outside steps, memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch

from feeb_tracking.probe import Probe
from feebcore.train.callbacks import RunContext
from feebcore.train.matmul_peak import matmul_peak


class Throughput(Probe):
    """A row, over the steps since the last one: tokens_per_second and utilization while stepping; data_wait: share of that time
    spent waiting for a batch; outside: share of all time that went to probes, validation and checkpoints; memory of
    the process in bytes, its peak so far (and CUDA's, where there is some).

    mfu: training FLOPs per second (three forwards, what the objective runs besides; attention counted in full, as if neither causality nor
    windows saved anything), divided by the data sheet's peak of the GPU. matmul_utilization, in place of mfu on a CPU and on other GPUs:
    the same by the peak that matrix products reach here. The first step of a process, which may compile, is left out. State: none: a row
    after a resume is about the steps since then.
    """

    name = "throughput"
    of_model = False

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.peak = matmul_peak(run.device, run.precision)
        self.flops_per_token = run.flops_per_token
        self.ranks = torch.distributed.get_world_size() if torch.distributed.is_available() and torch.distributed.is_initialized() else 1
        self.last: dict[str, Any] | None = None
        self.seconds = self.waited = 0.0
        self.start: dict[str, Any] | None = None

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if self.start is None:
            self.start = metrics
            return
        self.seconds += metrics["seconds"]
        self.waited += metrics["data_wait"]
        self.last = metrics
        if self.due(step):
            self.write(step, self.measure(step))
            self.start, self.seconds, self.waited = metrics, 0.0, 0.0

    def measure(self, step: int) -> dict[str, Any]:
        assert self.start is not None
        assert self.last is not None
        rate = (self.last["tokens"] - self.start["tokens"]) / self.seconds
        elapsed = self.last["elapsed"] - self.start["elapsed"]
        return {
            "tokens_per_second": rate,
            "matmul_utilization" if self.peak.measured else "mfu": rate * self.flops_per_token / self.ranks / self.peak.flops,
            "peak_flops": self.peak.flops,
            "data_wait": self.waited / self.seconds,
            "outside": max(0.0, 1.0 - self.seconds / elapsed),
        } | memory(self.run.device)


def memory(device: torch.device) -> dict[str, int]:
    """Bytes at most so far: resident in the process, and allocated on the device."""
    unit = 1 if sys.platform == "darwin" else 1024
    bytes_ = {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return bytes_ | ({"device_memory": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {})
