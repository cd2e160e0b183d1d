"""Schedule-free AdamW (arXiv:2405.15682): no decay of the learning rate, an average of the weights instead.

    z: the weights that gradients move;  x: their average, for evaluation;  y = beta1 x + (1 - beta1) z: where gradients are taken
    v = lerp(v, g(y)^2, 1 - beta2);  d = g / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay y
    z -= lr d;  x = lerp(x, z, c),  c = w_t / (w_1 + .. + w_t),  w_t = t^step_power (largest lr so far)^weight_power

The parameters are y while training; x is never stored, as y and z determine it. `use_eval_weights()` puts x into the
parameters and `use_train_weights()` puts y back, bit for bit. Take schedule: constant with a warmup; the learning rate is AdamW's, or up to 10 times it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from feeb_optim.cache_blocks import cache_blocks
from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.role_groups import role_group
from feeb_optim.schedule_free import ScheduleFreeConfig
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import local_shard
from feebcore.train.optimizer import Optimizer


class ScheduleFreeAdamW(Optimizer):
    counters = ("steps", "largest_lr", "weight_sum")
    has_eval_weights = True

    def __init__(self, config: ScheduleFreeConfig, context: BuildContext) -> None:
        # beta1 is no `betas`: a schedule for momentum would change what y and z mean
        options = {"average_share": config.betas[0], "beta2": config.betas[1], "eps": config.eps}
        weights = {"weight_power": config.weight_power, "step_power": config.step_power, "steps": 0, "largest_lr": 0.0, "weight_sum": 0.0}
        super().__init__([role_group(config, g, **options, **weights) for g in context.groups], {})
        self._training: list[tuple[Tensor, Tensor]] | None = None  # weights and their training values, during evaluation

    @torch.no_grad()
    def use_eval_weights(self) -> None:
        """Put the average x into the parameters; again: nothing."""
        if self._training is not None:
            return
        self._training = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if "z" in self.state[p]]
            weights, beta = shards_of(parameters), group["average_share"]
            if not weights or beta == 0:  # with beta1 0, y is z, and x is lost: schedule-free without averaging
                continue
            self._training += [(w, w.clone()) for w in weights]
            torch._foreach_lerp_(weights, state_of(self, parameters, "z"), 1 - 1 / beta)

    @torch.no_grad()
    def use_train_weights(self) -> None:
        """Put y back where `use_eval_weights` found it; without it: nothing."""
        for weights, before in self._training or []:
            weights.copy_(before)
        self._training = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        if self._training is not None:
            raise RuntimeError("schedule_free: step() after use_eval_weights(); call use_train_weights() first")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(group, parameters)

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        group["steps"] += 1
        step, lr, beta1, beta2 = group["steps"], group["lr"], group["average_share"], group["beta2"]
        group["largest_lr"] = max(lr, group["largest_lr"])
        weight = step ** group["step_power"] * group["largest_lr"] ** group["weight_power"]
        group["weight_sum"] += weight
        share = weight / group["weight_sum"] if group["weight_sum"] else 0.0
        for p in parameters:
            if "z" not in self.state[p]:
                self.state[p]["z"] = local_shard(p).clone()
        state = [state_of(self, parameters, key) for key in ("z", "exp_avg_sq")]
        for y, gradients, z, squares in cache_blocks(shards_of(parameters), gradients_of(parameters), *state):
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - beta2)
            sizes = torch._foreach_div(squares, 1 - beta2**step)
            torch._foreach_sqrt_(sizes)
            torch._foreach_add_(sizes, group["eps"])
            directions = torch._foreach_div(gradients, sizes)
            if group["weight_decay"]:
                torch._foreach_add_(directions, y, alpha=group["weight_decay"])
            torch._foreach_lerp_(y, z, share)
            torch._foreach_add_(y, directions, alpha=lr * (beta1 * (1 - share) - 1))
            torch._foreach_add_(z, directions, alpha=-lr)
