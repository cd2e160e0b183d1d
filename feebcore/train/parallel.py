"""Several processes that train one model: what the loop asks of them. One process is the plain case, and needs nothing.

Ranks take the slots rank::world of every batch, gradients are summed over ranks, and every number that is reported is a
sum over ranks divided by a global count, so that a run means the same for any number of ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Parallel:
    """One process. rank: of this process among `world`. strategy: none, ddp or fsdp."""

    strategy = "none"

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files that all share."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module to call in training. It may be changed in place (sharded) or wrapped (replicated)."""
        return module

    def accumulating(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the last one only."""
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of `values` [K], the same on every rank."""
        return values

    def grad_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """L2 norm of the whole gradient, over all ranks where it is sharded. fp32 scalar."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: what one rank is asked to do, all do at the same step."""
        return flag

    def barrier(self) -> None:
        """Wait for the other ranks."""

    def close(self) -> None:
        """Leave the group."""
