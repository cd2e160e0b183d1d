"""What ranks of DDP pay for, each against the same step without it, alternating in one run: `python benchmarks/ranks.py`.

owners: each matrix of muon, normuon and soap is computed by one rank, or by all of them.
unused: DDP searches every backward pass for parameters that got no gradient (`find_unused_parameters`), or does not.

Ranks are processes with one thread each on this machine, which talk through Gloo. Prints one JSON line a question: processor seconds of
rank 0 a step, and quartiles of ratios: of these, of those of the optimizer alone, and of the time that the step took.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from feebcore.model.build import build_model
from feebcore.model.groups import param_groups
from feebcore.parts import resolve_part
from feebcore.train.optimizer_schedules import build_optimizer
from feebcore.train.parallel import DDP, join
from feebcore.train.step import LossModule

CPU = torch.device("cpu")
Step = Callable[[], float]


def make(options: argparse.Namespace, optimizer: str, owners: bool = True, unused: bool = True) -> Step:
    """A training step of a model of its own; returns the processor seconds of the optimizer in it."""
    model = build_model(
        resolve_part("architectures", {"name": "transformer", "num_layers": options.layers, "d_model": options.d_model, "num_heads": 4}), 256, 64
    )
    module = LossModule(model, resolve_part("objectives", "next_token").build(), "fp32", CPU)
    with mock.patch("feebcore.train.parallel.DistributedDataParallel", lambda *a, **k: DistributedDataParallel(*a, **k | {"find_unused_parameters": unused})):
        wrapped = DDP(CPU, owns_group=False).wrap(module)
    made = build_optimizer(resolve_part("optimizers", optimizer), param_groups(model), world=dist.get_world_size() if owners else 1)
    tokens = torch.randint(256, (options.batch, 65), generator=torch.Generator().manual_seed(dist.get_rank()))

    def step() -> float:
        wrapped(tokens[:, :-1], tokens[:, 1:], None, None, None)[0].backward()
        began = time.process_time()
        made.step()
        made.zero_grad(set_to_none=True)
        return time.process_time() - began

    return step


def compare(steps: dict[str, Step], rounds: int) -> dict[str, Any]:
    measured: dict[str, list[tuple[float, ...]]] = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    for number in range(rounds):
        for name in list(steps)[:: 1 if number % 2 else -1]:
            dist.barrier()
            began = time.process_time(), time.perf_counter()
            part = steps[name]()
            measured[name].append((time.process_time() - began[0], part, time.perf_counter() - began[1]))
    before, after = measured.values()
    ratios = ([b[i] / a[i] for a, b in zip(before, after, strict=True)] for i in range(3))
    found: dict[str, Any] = {name: round(statistics.median(one[0] for one in several), 4) for name, several in measured.items()}
    for name, several in zip(("ratio", "ratio of the optimizer", "ratio of time"), ratios, strict=True):
        found[name] = [round(q, 3) for q in statistics.quantiles(several, n=4)]
    return found


def rank(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    join(CPU)
    for optimizer in options.optimizers:
        found = compare({"all ranks": make(options, optimizer, owners=False), "owners": make(options, optimizer)}, options.rounds)
        if dist.get_rank() == 0:
            print(json.dumps({"question": "owners", "optimizer": optimizer, **found}), flush=True)
    small = copy.copy(options)
    small.d_model, small.batch = 64, 2
    found = compare({"no search": make(small, "adamw", unused=False), "search": make(small, "adamw")}, 5 * options.rounds)
    if dist.get_rank() == 0:
        print(json.dumps({"question": "unused", "d_model": small.d_model, **found}), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="sequences of 64 tokens for each rank")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--optimizers", nargs="*", default=["muon", "normuon", "soap"])
    options = parser.parse_args()
    if "RANK" in os.environ:
        rank(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        common = os.environ | {
            "WORLD_SIZE": str(options.ranks),
            "FEEB_RENDEZVOUS": str(Path(folder) / "meet"),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        ranks = [subprocess.Popen([sys.executable, *sys.argv], env=common | {"RANK": str(r)}) for r in range(options.ranks)]
        sys.exit(max(process.wait() for process in ranks))


if __name__ == "__main__":
    main()
