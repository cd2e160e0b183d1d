"""One rank of two: every optimizer on a model that torch's fully_shard has split, compared with the whole model. Prints JSON on rank 0.

python sharded_steps.py RANK WORLD FILE
"""

from __future__ import annotations

import copy
import json
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from feebcore.parts import resolve_part
from feebcore.protocols import ParamGroup
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
    if rank == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
