"""An exponential moving average of the weights, to evaluate and save in their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightAverage:
    """average = d average + (1 - d) weights after every step, d = min(decay, (1 + n) / (10 + n)) after n steps.

    The ramp keeps the random start from lingering. Kept in fp32 next to the weights; sharded as they are.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.named = dict(model.named_parameters())
        self.average: dict[str, Tensor] = {}
        self._train_weights: dict[str, Tensor] | None = None
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
        """Continue from the average that a checkpoint holds."""
        for name, average in self.average.items():
            average.copy_(tensors[name])

    def use_eval_weights(self) -> None:
        """Put the average into the model."""
        self._train_weights = {name: p.detach().clone() for name, p in self.named.items()}
        self._copy(self.average)

    def use_train_weights(self) -> None:
        """Put the model's own weights back, bit for bit."""
        if self._train_weights is not None:
            self._copy(self._train_weights)
        self._train_weights = None

    @torch.no_grad()
    def _copy(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(tensors[name])
