"""Sharded parameters (DTensor, arXiv:2304.11277): elementwise work is on a rank's own part, matrix work on the whole.

State that goes element by element with a parameter is kept as the rank's part of it, a plain tensor. State of any other
shape is kept whole on every rank, with more dimensions than the parameter or fewer, so that a checkpoint tells them apart.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feebcore.train.parallel import is_sharded
from feebcore.train.state_tensors import region_of


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def locals_of(tensors: list[Any]) -> list[Tensor]:
    return [local(t) for t in tensors]


def whole(part: Tensor, parameter: Any) -> Tensor:
    """The whole of which `part` is this rank's, sharded as `parameter` is. Every rank must call it."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=parameter.shape, stride=parameter.stride()).full_tensor()


def own_part_of(full: Tensor, parameter: Any) -> Tensor:
    """The inverse of `whole`: a view of this rank's part of a tensor of the parameter's shape."""
    if not is_sharded(parameter):
        return full
    region = region_of(parameter)
    return full[tuple(slice(o, o + n) for o, n in zip(region.offset, region.shape, strict=True))]


def gradients_of(parameters: list[Any]) -> list[Tensor]:
    return [local(p.grad) for p in parameters]


def state_of(optimizer: torch.optim.Optimizer, parameters: list[Any], key: str) -> list[Tensor]:
    """State tensors that go element by element with the parameters, zero where there are none yet."""
    for p in parameters:
        if key not in optimizer.state[p]:
            optimizer.state[p][key] = torch.zeros_like(local(p))
    return [local(optimizer.state[p][key]) for p in parameters]
