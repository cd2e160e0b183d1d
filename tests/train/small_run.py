"""A tiny run, also as a process of its own: `python small_run.py FOLDER JSON` where JSON overrides the section."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from feebcore.artifacts import StageOutput
from feebcore.protocols import Batch
from feebcore.stages.base import stop_on_signals
from feebcore.train.config import TrainSection
from feebcore.train.pretrain import TrainResult, train_model

VOCAB, T, B = 64, 16, 8


def section(**changes: Any) -> TrainSection:
    base: dict[str, Any] = {
        "architecture": {"name": "transformer", "num_layers": 2, "d_model": 32, "num_heads": 2},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "schedule": {"name": "cosine", "warmup_steps": 3},
        "seq_len": T,
        "batch_size": B,
        "max_steps": 20,
        "compile": "off",
        "precision": "fp32",
        "threads": 1,
        "checkpoint_every": 4,
        "log_every": 3,
        "callbacks": ["metrics"],
    }
    return TrainSection.model_validate(base | changes)


class Cycle:
    """Text that can be learnt: each token follows from the one before. Stateless in the step."""

    def __init__(self, at_step: dict[int, Any] | None = None, masked: bool = False) -> None:
        self.at_step, self.masked = at_step or {}, masked

    def batch(self, step: int) -> Batch:
        if step in self.at_step:
            self.at_step[step]()
        generator = torch.Generator().manual_seed(step)
        tokens = torch.empty(B, T + 1, dtype=torch.int64)
        tokens[:, 0] = torch.randint(VOCAB, (B,), generator=generator)
        for t in range(T):
            tokens[:, t + 1] = (tokens[:, t] * 5 + 3 + torch.randint(2, (B,), generator=generator)) % VOCAB
        mask = torch.rand(B, T, generator=generator) < torch.linspace(0.1, 0.9, B)[:, None] if self.masked else None
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask)


def run(folder: Path, the_section: TrainSection | None = None, data: Any = None, logged: list[str] | None = None, **options: Any) -> TrainResult:
    folder.mkdir(parents=True, exist_ok=True)
    out = StageOutput(folder, (lambda row: logged.append(row.get("text", ""))) if logged is not None else None)
    try:
        with stop_on_signals(out):
            return train_model(the_section or section(), data or Cycle(), None, None, folder, out, vocab_size=VOCAB, **options)
    finally:
        out.close()


if __name__ == "__main__":
    wanted = json.loads(sys.argv[2])
    kill_at, how = wanted.pop("kill_at", None), getattr(signal, wanted.pop("signal", "SIGKILL"))
    run(Path(sys.argv[1]), section(**wanted), Cycle({} if kill_at is None else {kill_at: lambda: os.kill(os.getpid(), how)}))
