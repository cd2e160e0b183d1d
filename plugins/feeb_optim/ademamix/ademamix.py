"""AdEMAMix (arXiv:2409.03137): Adam with a second average of gradients, over tens of thousands of steps.

    m1 = lerp(m1, g, 1 - beta1);  m2 = lerp(m2, g, 1 - beta3);  v = lerp(v, g^2, 1 - beta2)
    w -= lr ((m1 / (1 - beta1^t) + alpha m2) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w)

alpha rises linearly and beta3 so that the half-life of m2 rises linearly, both over `warmup_steps`. Here instead of Sophia,
which needs a second backward pass: in a comparison at equal tuning (arXiv:2509.01440) this one was among the best throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feeb_optim.ademamix import AdEMAMixConfig
from feeb_optim.cache_blocks import cache_blocks
from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.role_groups import adamw_group
from feebcore.protocols import BuildContext
from feebcore.train.optimizer import Optimizer


class AdEMAMix(Optimizer):
    counters = ("steps",)

    def __init__(self, config: AdEMAMixConfig, context: BuildContext) -> None:
        options = {"slow_beta": config.slow_beta, "alpha": config.alpha, "warmup_steps": config.warmup_steps}
        super().__init__([adamw_group(config, g, steps=0, **options) for g in context.groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            group["steps"] += 1
            state = [state_of(self, parameters, key) for key in ("exp_avg", "exp_avg_slow", "exp_avg_sq")]
            for lists in cache_blocks(shards_of(parameters), gradients_of(parameters), *state):
                ademamix_(group, *lists)


def ademamix_(group: dict[str, Any], weights: list[Tensor], gradients: list[Tensor], fast: list[Tensor], slow: list[Tensor], squares: list[Tensor]) -> None:
    """One step of weights and averages, in place, with the options of a torch group."""
    (beta1, beta2), step, warmup = group["betas"], group["steps"], group["warmup_steps"]
    torch._foreach_lerp_(fast, gradients, 1 - beta1)
    torch._foreach_lerp_(slow, gradients, 1 - rising_beta(step, warmup, beta1, group["slow_beta"]))
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
    sizes = torch._foreach_sqrt(squares)
    torch._foreach_div_(sizes, math.sqrt(1 - beta2**step))
    torch._foreach_add_(sizes, group["eps"])
    updates = torch._foreach_div(fast, 1 - beta1**step)
    torch._foreach_add_(updates, slow, alpha=rising_alpha(step, warmup, group["alpha"]))
    if group["weight_decay"]:
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
    torch._foreach_addcdiv_(weights, updates, sizes, value=-group["lr"])


def rising_alpha(step: int, warmup: int, alpha: float) -> float:
    return alpha * min(1.0, step / warmup) if warmup else alpha


def rising_beta(step: int, warmup: int, beta1: float, beta3: float) -> float:
    """From beta1 to beta3 as 1 / log(beta) goes on a straight line (equation 4); beta1 0 has no such line and jumps."""
    if step >= warmup or not 0 < beta1 < beta3:
        return beta3
    part = step / warmup
    return math.exp(1 / ((1 - part) / math.log(beta1) + part / math.log(beta3)))
