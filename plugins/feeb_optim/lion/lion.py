"""Lion (arXiv:2302.06675, Program 1): half of Adam's state, and every weight moves by the same amount.

c = lerp(m, g, 1 - beta1);  w = (1 - lr weight_decay) w - lr sign(c);  m = lerp(m, g, 1 - beta2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feeb_optim.cache_blocks import cache_blocks
from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.lion import LionConfig
from feeb_optim.role_groups import role_group
from feebcore.protocols import BuildContext
from feebcore.train.optimizer import Optimizer


class Lion(Optimizer):
    def __init__(self, config: LionConfig, context: BuildContext) -> None:
        super().__init__([role_group(config, g, betas=config.betas) for g in context.groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            averages = state_of(self, parameters, "exp_avg")
            for weights, gradients, momenta in cache_blocks(shards_of(parameters), gradients_of(parameters), averages):
                lion_(weights, gradients, momenta, group["lr"], group["betas"], group["weight_decay"])


def lion_(weights: list[Tensor], gradients: list[Tensor], averages: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    """One step of weights and averages, in place."""
    signs = torch._foreach_lerp(averages, gradients, 1 - betas[0])
    torch._foreach_sign_(signs)
    if weight_decay:
        torch._foreach_mul_(weights, 1 - lr * weight_decay)
    torch._foreach_add_(weights, signs, alpha=-lr)
    torch._foreach_lerp_(averages, gradients, 1 - betas[1])
