"""Lion (arXiv:2302.06675, Program 1): half of Adam's state, and every weight moves by the same amount.

c = lerp(m, g, 1 - beta1);  w = (1 - lr weight_decay) w - lr sign(c);  m = lerp(m, g, 1 - beta2)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from feeb_optim.configs import LionConfig
from feeb_optim.role_groups import role_group
from feeb_optim.sharding import gradients_of, locals_of, state_of
from feebcore.protocols import ParamGroup


def build(config: LionConfig, groups: list[ParamGroup]) -> torch.optim.Optimizer:
    return Lion([role_group(config, g, betas=config.betas) for g in groups], {})


class Lion(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            weights, gradients = locals_of(parameters), gradients_of(parameters)
            averages = state_of(self, parameters, "exp_avg")
            beta1, beta2 = group["betas"]
            signs = torch._foreach_lerp(averages, gradients, 1 - beta1)
            torch._foreach_sign_(signs)
            if group["weight_decay"]:
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, signs, alpha=-group["lr"])
            torch._foreach_lerp_(averages, gradients, 1 - beta2)
