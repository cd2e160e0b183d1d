"""Elementwise optimizer steps on a rank's own shard of each parameter (arXiv:2304.11277).

State that goes element by element with a parameter is a plain tensor with the shape of the shard. State of any other shape is
whole on every rank, with more or fewer dimensions than the parameter, so that a checkpoint tells them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feebcore.train.dtensor import local_shard


def shards_of(tensors: list[Any]) -> list[Tensor]:
    return [local_shard(t) for t in tensors]


def gradients_of(parameters: list[Any]) -> list[Tensor]:
    return [local_shard(p.grad) for p in parameters]


def state_of(optimizer: torch.optim.Optimizer, parameters: list[Any], key: str) -> list[Tensor]:
    """State tensors that go element by element with the parameters, zero where there are none yet."""
    for p in parameters:
        if key not in optimizer.state[p]:
            optimizer.state[p][key] = torch.zeros_like(local_shard(p))
    return [local_shard(optimizer.state[p][key]) for p in parameters]
