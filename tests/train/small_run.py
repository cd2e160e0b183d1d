"""A tiny run, also in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import forked
import torch
from safetensors.torch import load_file

from feebcore.artifacts import StageOutput
from feebcore.files import read_jsonl
from feebcore.protocols import Batch
from feebcore.run.build import stop_on_signals
from feebcore.train.checkpoint import name_of
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
        "prefetch": 0,
    }
    return TrainSection.model_validate(base | changes)


class Cycle:
    """Text that can be learned: each token follows from the one before. Stateless in the step."""

    def __init__(self, at_step: dict[int, Any] | None = None, masked: bool = False) -> None:
        self.at_step, self.masked = at_step or {}, masked

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        if step in self.at_step:
            self.at_step[step]()
        generator = torch.Generator().manual_seed(step)
        tokens = torch.empty(B, T + 1, dtype=torch.int64)
        tokens[:, 0] = torch.randint(VOCAB, (B,), generator=generator)
        for t in range(T):
            tokens[:, t + 1] = (tokens[:, t] * 5 + 3 + torch.randint(2, (B,), generator=generator)) % VOCAB
        mask = torch.rand(B, T, generator=generator) < torch.linspace(0.1, 0.9, B)[:, None] if self.masked else None
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask)


class Shocks:
    """The same text, of which some batches are noise that no model can foresee: their loss stands out."""

    def __init__(self, bad: set[int], kill_at: int | None = None) -> None:
        self.bad, self.kill_at = bad, kill_at
        self.asked: list[int] = []

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        self.asked.append(step)
        if step == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        batch = Cycle().batch(step)
        if step in self.bad:
            batch.targets.copy_(torch.randint(VOCAB, batch.targets.shape, generator=torch.Generator().manual_seed(step)))
        return batch


def run(folder: Path, the_section: TrainSection | None = None, data: Any = None, logged: list[str] | None = None, **options: Any) -> TrainResult:
    folder.mkdir(parents=True, exist_ok=True)
    out = StageOutput(folder, (lambda row: logged.append(row.get("text", ""))) if logged is not None else None)
    try:
        with stop_on_signals(out):
            return train_model(the_section or section(), data or Cycle(), None, None, folder, out, vocab_size=VOCAB, **options)
    finally:
        out.close()


TIME_FIELDS = ("elapsed", "tokens_per_second", "data_wait")


def in_process_of_its_own(folder: Path, environment: Mapping[str, str] = {}, **changes: object) -> int:
    """The exit code of a run that sends itself `signal` (SIGKILL) when it asks for the batch of step `kill_at`."""
    process = forked.start(_run_with, folder, changes, environment=environment)
    process.join(800)
    assert process.exitcode is not None
    return process.exitcode


def _run_with(folder: Path, changes: dict[str, Any]) -> None:
    kill_at, how, bad = (changes.pop(key, None) for key in ("kill_at", "signal", "shocks"))
    data: Any = Cycle({} if kill_at is None else {kill_at: lambda: os.kill(os.getpid(), how or signal.SIGKILL)})
    run(folder, section(**changes), data if bad is None else Shocks(set(bad), kill_at))


def rows(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in TIME_FIELDS} for row in read_jsonl(folder / "metrics.jsonl")]


def assert_same_bits(a: Path, b: Path, step: int = 20) -> None:
    for name in ("model", "optimizer"):
        first, second = (load_file(f / "checkpoints" / name_of(step) / f"{name}.safetensors") for f in (a, b))
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert tensor.numpy().tobytes() == second[key].numpy().tobytes(), f"{name}: {key}"
    assert rows(a) == rows(b)
