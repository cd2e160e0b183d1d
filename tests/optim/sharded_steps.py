"""One rank of two: every optimizer on a model that torch's fully_shard has split, compared with the whole model; and matrices that
the ranks share out, compared with one rank that computes all. Prints JSON on rank 0.

python sharded_steps.py RANK WORLD FILE
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import sys
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

from feeb_optim import owners
from feeb_optim.adafactor import adafactor
from feeb_optim.muon import muon
from feeb_optim.soap import soap
from feebcore.parts import resolve_part
from feebcore.protocols import ParamGroup
from feebcore.train.dtensor import as_sharded
from feebcore.train.optimizer_schedules import build_optimizer
from feebcore.train.state_tensors import checkpoint_shard, optimizer_state

PARTS = [
    {"name": "adamw", "weight_decay": 0.2},
    {"name": "adam"},
    {"name": "sgd", "nesterov": True},
    {"name": "lion"},
    {"name": "ademamix"},
    {"name": "schedule_free"},
    {"name": "muon", "weight_decay": 0.2},
    {"name": "normuon"},
    {"name": "soap", "precondition_every": 2},
    {"name": "adafactor"},
    {"name": "grokfast", "optimizer": {"name": "muon"}},
]


class Small(nn.Module):
    """Sides that two ranks cannot halve are among them, and a side of 1, of which a rank gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.up, self.down = nn.Linear(6, 13, bias=False), nn.Linear(13, 6)
        self.norm, self.lm_head = nn.LayerNorm(6), nn.Linear(6, 11, bias=False)
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        return self.lm_head(self.norm(x + self.one * self.down(torch.tanh(self.up(x)))))


def groups_of(model: nn.Module) -> list[ParamGroup]:
    named = dict(model.named_parameters())
    roles = {"embedding": ["table.weight"], "lm_head": ["lm_head.weight"], "matrix": ["up.weight", "down.weight"]}
    roles["vector"] = [name for name in named if not any(name in names for names in roles.values())]
    blocks = {"up.weight": (8, 5)}  # two maps in one matrix, of which a rank has parts of both
    return [ParamGroup(role, names, [named[n] for n in names], blocks if role == "matrix" else {}) for role, names in roles.items()]


def train(model: nn.Module, part: dict, steps: int = 6) -> torch.optim.Optimizer:
    optimizer = build_optimizer(resolve_part("optimizers", part), groups_of(model))
    for step in range(steps):
        tokens = torch.randint(11, (4, 8), generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.roll(1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    optimizer.use_eval_weights()
    return optimizer


SHAPES = {"qkv": (24, 8), "up": (8, 24), "experts": (3, 12, 7), "tall": (17, 5), "late": (8, 24), "narrow": (9, 1), "row": (1, 6)}
FUSED: dict[str, tuple[int, ...]] = {"qkv": (8, 8, 8), "experts": (5, 7)}
SHARED: list[dict[str, Any]] = [
    {"name": "muon", "weight_decay": 0.2, "nesterov": False},
    {"name": "normuon", "weight_decay": 0.2},
    {"name": "soap", "precondition_every": 2, "max_precondition_dim": 20},
    {"name": "adafactor"},  # shared out where it is sharded: the work is little next to sending the result
]


def stepped(part: dict[str, Any], form: str) -> tuple[dict[str, torch.Tensor], int]:
    """Weights and state after six steps on matrices that every rank computes ("alone"), or holds whole or in shards; and how many
    matrices this rank has worked on."""
    generator, mesh = torch.Generator().manual_seed(0), init_device_mesh("cpu", (dist.get_world_size(),))

    def held(value: torch.Tensor) -> torch.Tensor:
        return distribute_tensor(value, mesh, [Shard(0)]) if form == "sharded" else value

    matrices = {name: nn.Parameter(held(torch.randn(shape, generator=generator))) for name, shape in SHAPES.items()}
    groups = [ParamGroup("matrix", list(matrices), list(matrices.values()), FUSED)]
    optimizer = build_optimizer(resolve_part("optimizers", part), groups, world=1 if form == "alone" else dist.get_world_size())
    count = 0

    def counted(function: Any) -> Any:
        def call(x: Any, *arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += len(x)
            return function(x, *arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for module, name in ((muon, "orthogonalize"), (soap, "turn"), (adafactor, "adafactor")):
            stack.enter_context(mock.patch.object(module, name, counted(getattr(module, name))))
        for step in range(6):
            for name, p in matrices.items():
                gradient = held(torch.randn(p.shape, generator=generator))
                p.grad = gradient if name != "late" or step > 1 else None
            optimizer.step()
    optimizer.share_state()
    state = {f"{name} {key}": value for name, p in matrices.items() for key, value in optimizer.state[p].items()}
    for place, value in state.items():
        like = matrices[place.split()[0]]
        if form == "sharded" and value.shape == like.to_local().shape:  # type: ignore[operator]
            state[place] = as_sharded(value, like).full_tensor()  # type: ignore[attr-defined]
    return {name: p.detach().full_tensor() if form == "sharded" else p.detach() for name, p in matrices.items()} | state, count  # type: ignore[operator]


def shared_out() -> dict[str, list[str]]:
    """For each optimizer what is not the same bit for bit; and the matrices that not one rank but several, or none, have computed."""
    wrong: dict[str, list[str]] = {}
    for part, form, limit in itertools.product(SHARED, ("whole", "sharded"), (owners.ROUND_ELEMENTS, 150)):
        if (part["name"], form) == ("adafactor", "whole"):
            continue
        expected, all_of_them = stepped(part, "alone")
        with mock.patch.object(owners, "ROUND_ELEMENTS", limit):
            found, count = stepped(part, form)
        assert found.keys() == expected.keys()
        differ = [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])]
        counts = torch.tensor([count, int(count > 0)])
        dist.all_reduce(counts)
        if counts.tolist() != [all_of_them, dist.get_world_size()]:
            differ.append(f"{counts.tolist()} of {all_of_them} matrices")
        wrong[f"{part['name']} {form} {limit}"] = differ
    return wrong


def main(rank: int, world: int, file: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    found = {}
    for part in PARTS:
        torch.manual_seed(0)
        single = Small()
        before = {n: p.detach().clone() for n, p in single.named_parameters()}
        sharded = copy.deepcopy(single)
        fully_shard(sharded)
        train(single, part)
        optimizer = train(sharded, part)
        whole = {n: p.full_tensor().detach() for n, p in sharded.named_parameters()}
        gaps = {n: float((whole[n] - p.detach()).norm() / (p.detach() - before[n]).norm()) for n, p in single.named_parameters()}
        # what a checkpoint would take for a slice of a parameter must be one
        places = optimizer_state(sharded, optimizer)[0]
        named = dict(sharded.named_parameters())
        for place, tensor in places.items():
            name, key = place.split("|")
            _, region, _ = checkpoint_shard(tensor, named[name])
            wholly = key.startswith(("gram", "basis", "rows", "columns", "row_mean", "step"))
            assert (region is None) == wholly, f"{part['name']}: {place} {tuple(tensor.shape)}"
        found[part["name"]] = max(gaps.values())
    wrong = shared_out()
    if rank == 0:
        print(json.dumps({"gaps": found, "wrong": wrong}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
