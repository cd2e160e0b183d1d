"""Checks that need more than this process: the compiler of production, of most architectures with `feeb check --full` only, and two processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

from feebcore.testing.framework import Candidate, check, fail
from feebcore.testing.models import KINDS, loss_of, require_close, small_model, some_tokens

RANKS = 2


FEW = ("architectures/transformer", "architectures/gpt2", "architectures/qwen3")


@check("architectures", full=True, always=FEW, meaning="Compiled by inductor the model computes something else; look for in-place tricks and views that alias.")
def inductor_parity(subject: Candidate) -> None:
    model, tokens = small_model(subject, num_layers=1), some_tokens()
    eager = loss_of(model, tokens)
    # what a head predicts besides the next token has no part in this loss
    expected = torch.autograd.grad(eager, list(model.parameters()), allow_unused=True, materialize_grads=True)
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, fullgraph=True)(model, tokens)
    actual = torch.autograd.grad(compiled, list(model.parameters()), allow_unused=True, materialize_grads=True)
    require_close(compiled, eager, "loss compiled and eager", 1e-4)
    for name, a, b in zip(dict(model.named_parameters()), actual, expected, strict=True):
        require_close(a, b, f"gradient of {name} compiled and eager", 1e-4)


class RankPair:
    """Two processes that compute gradients together (ranks.py); they live as long as this one."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="feeb-ranks-")
        command = [sys.executable, "-P", "-m", "feebcore.testing.ranks", self.folder.name]
        self.workers = [
            subprocess.Popen([*command, str(rank), str(RANKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
            for rank in range(RANKS)
        ]
        atexit.register(self.close)

    def gradients(self, subject: Candidate) -> dict[str, torch.Tensor]:
        """By name, of the mean loss over both ranks' rows. Raises CheckFailed with what a rank raised."""
        plugins = subject.registry.plugins if subject.registry else []
        job = {"kind": subject.kind, "part": subject.part.dump(), "files": [p.origin for p in plugins if p.origin.endswith(".py")]}
        for worker in self.workers:
            assert worker.stdin
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
        answers = [worker.stdout.readline() for worker in self.workers]  # type: ignore[union-attr]
        for rank, answer in enumerate(answers):
            if not answer:
                _rank_pair.cache_clear()
                fail(f"rank {rank} ended")
            if problem := json.loads(answer)["problem"]:
                fail(f"a rank raised {problem}")
        return load_file(Path(self.folder.name) / "gradients.safetensors")

    def close(self) -> None:
        for worker in self.workers:
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()  # type: ignore[union-attr]
        for worker in self.workers:
            try:
                worker.wait(10)
            except subprocess.TimeoutExpired:  # it waits for a rank that has died
                worker.kill()


@functools.cache
def _rank_pair() -> RankPair:
    return RankPair()


@check(
    *KINDS,
    elsewhere=True,
    meaning="Two processes with half the rows each do not find the gradient of one with all rows; look for sums or statistics over a batch.",
)
def two_rank_parity(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens(2 * RANKS)
    summed = _rank_pair().gradients(subject)
    loss_of(model, tokens).backward()
    for name, p in model.named_parameters():
        require_close(summed[name], torch.zeros_like(p) if p.grad is None else p.grad, f"gradient of {name} from {RANKS} ranks")
