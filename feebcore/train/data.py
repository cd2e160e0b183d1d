"""What the loop reads batches from."""

from __future__ import annotations

from typing import Protocol

from feebcore.protocols import Batch


class Data(Protocol):
    """`batch(step)`, counted from 0, gives the whole batch of an optimizer step, `batch(step, rank, world)` this rank's
    rows of it; the same step, the same batch."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch: ...


class Repeated:
    """The first `number` batches of `data`, over and over: whether a model can overfit is the first question to ask."""

    def __init__(self, data: Data, number: int) -> None:
        self.data, self.number = data, number

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        return self.data.batch(step % self.number, rank, world)
