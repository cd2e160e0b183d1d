"""Grokfast (arXiv:2405.20233, Algorithm 2): g + lamb * EMA(g) in place of the gradient g, for any optimizer.

The average lies in the optimizer's own state, so that it is saved and restored with it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feeb_optim.elementwise import gradients_of
from feeb_optim.grokfast import GrokfastConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import local_shard
from feebcore.train.optimizer import Optimizer

KEY = "slow_gradient"


def grokfast(config: GrokfastConfig, context: BuildContext) -> Optimizer:
    optimizer: Optimizer = config.optimizer.build(context)
    optimizer._step_supports_amp_scaling = False  # a fused step would scale gradients after we have seen them
    amplifier = Amplifier(config)
    optimizer.register_step_pre_hook(amplifier.before)
    optimizer.register_step_post_hook(amplifier.after)
    return optimizer


class Amplifier:
    """Hooks around a step. An average first goes into the state after the step: optimizers begin by finding theirs empty."""

    def __init__(self, config: GrokfastConfig) -> None:
        self.config = config
        self._fresh: dict[Any, Tensor] = {}

    @torch.no_grad()
    def before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        known = [p for p in parameters if KEY in optimizer.state.get(p, ())]
        self._fresh = {p: local_shard(p.grad).clone() for p in parameters if KEY not in optimizer.state.get(p, ())}
        averages = [local_shard(optimizer.state[p][KEY]) for p in known]
        if known:
            torch._foreach_lerp_(averages, gradients_of(known), 1 - self.config.alpha)
        if parameters:
            torch._foreach_add_(gradients_of([*known, *self._fresh]), [*averages, *self._fresh.values()], alpha=self.config.lamb)

    def after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, average in self._fresh.items():
            optimizer.state[parameter][KEY] = average
        self._fresh = {}
