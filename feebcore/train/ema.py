"""An exponential moving average of the weights, and looking at a run through it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = d average + (1 - d) weights after every step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    The ramp keeps the random start from lingering. Kept in fp32 beside the weights; sharded as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.named = dict(model.named_parameters())
        self.average: dict[str, Tensor] = {}
        self.restart()

    def restart(self) -> None:
        """Begin with the weights as they are."""
        self.average = {name: p.detach().clone() for name, p in self.named.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step`, counted from 1."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.named.values()], weight)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, average in self.average.items():
            average.copy_(tensors[name])

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside; afterwards its own again, bit for bit."""
        own = {name: p.detach().clone() for name, p in self.named.items()}
        self.put()
        try:
            yield
        finally:
            self._put(own)

    def put(self) -> None:
        """The model has the averaged weights from here on."""
        self._put(self.average)

    @torch.no_grad()
    def _put(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(tensors[name])
