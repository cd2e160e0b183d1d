"""Sharded tensors (DTensor, arXiv:2304.11277): each rank holds a slice along one dimension.

Elementwise work runs on a rank's own shard (`local_shard`); other work has to gather the tensor. Imports nothing of feebcore.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ShardSpec:
    """A block of a tensor of `global_shape`: its offset and its shape, one entry per dimension."""

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def full(cls, shape: Sequence[int]) -> ShardSpec:
        """The whole tensor as one block."""
        return cls(tuple(shape), (0,) * len(shape), tuple(shape))

    def numel(self) -> int:
        """Elements of the block."""
        return math.prod(self.shape)

    def slices(self) -> tuple[slice, ...]:
        """The block's place as an index into the whole tensor."""
        return tuple(slice(start, start + length) for start, length in zip(self.offset, self.shape, strict=True))

    def overlap(self, other: ShardSpec) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
        """What both blocks cover, as indices into this one and into the other; None when nothing."""
        mine, theirs = [], []
        for a, n, b, m in zip(self.offset, self.shape, other.offset, other.shape, strict=True):
            low, high = max(a, b), min(a + n, b + m)
            if low >= high:
                return None
            mine.append(slice(low - a, high - a))
            theirs.append(slice(low - b, high - b))
        return tuple(mine), tuple(theirs)


def is_sharded(tensor: Any) -> bool:
    """Whether this rank holds only a shard of the tensor (it is a DTensor)."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def shard_spec(tensor: Any, rank: int | None = None) -> ShardSpec:
    """Where a rank's shard of a DTensor lies, this rank's by default; another's only where ranks are in one dimension. Along the
    sharded dimension ranks hold ceil(n / world) rows each, the last fewer."""
    offset, shape = [0] * tensor.dim(), list(tensor.shape)
    for dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            rows = tensor.shape[placement.dim]
            each = -(-rows // tensor.device_mesh.size(dim))
            place = tensor.device_mesh.get_local_rank(dim) if rank is None else rank
            offset[placement.dim] = min(rows, place * each)
            shape[placement.dim] = min(rows, (place + 1) * each) - offset[placement.dim]
    return ShardSpec(tuple(tensor.shape), tuple(offset), tuple(shape))


def local_shard(tensor: Any) -> Tensor:
    """This rank's shard of a tensor, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def as_sharded(shard: Tensor, like: Any) -> Tensor:
    """The DTensor that is sharded as `like` is, and of which `shard` is this rank's part."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(shard, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())
