"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, then the nearest orthogonal matrix.

    m = lerp(m, g, 1 - momentum);  u = lerp(g, m, momentum)            (Nesterov)
    W -= lr sqrt(max(1, rows / columns)) NewtonSchulz5(u)              NewtonSchulz5(U S V^T) ~ U V^T

for the role 'matrix'; AdamW for the other roles. Matrices of one shape, transposed or not, are orthogonalised as one
batch, in bf16 where the hardware has it: 9 ms a step for twelve 256 x 256 matrices on two cores, 46 ms in fp32.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from feeb_optim import MuonConfig
from feeb_optim.adamw import adamw_group, can_fuse
from feebcore.protocols import ParamGroup
from feebcore.train.precision import has_fast_bf16

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def build(config: MuonConfig, groups: list[ParamGroup]) -> torch.optim.Optimizer:
    return Muon([adamw_group(config, g) | {"use_muon": g.role == "matrix", "fused": can_fuse(groups)} for g in groups], config)


def orthogonalise(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Batched Newton-Schulz: matrices [N,R,C], R <= C, with all singular values moved to about 1 (0.7 to 1.2).

    In the dtype given. Cost: 2 N steps (2 R^2 C + R^3) multiply-adds.
    """
    a, b, c = COEFFICIENTS
    x_NRC = x_NRC / (x_NRC.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7) * 1.02).to(x_NRC.dtype)
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC


class Muon(torch.optim.Optimizer):
    """Groups with use_muon hold matrices [..., R, C] (leading dimensions are a batch); the others are for AdamW."""

    def __init__(self, groups: list[dict[str, Any]], config: MuonConfig) -> None:
        self.config = config
        super().__init__(groups, {"lr": config.lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                (self._muon if group["use_muon"] else self._adamw)(group, parameters)

    def _muon(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        config = self.config
        group["steps"] = group.get("steps", 0) + 1
        momentum = config.momentum
        if config.momentum_warmup:
            momentum = 0.85 + (momentum - 0.85) * min(1.0, (group["steps"] - 1) / config.momentum_warmup)
        gradients = [p.grad for p in parameters]
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)  # type: ignore[arg-type]
        updates = torch._foreach_lerp(gradients, buffers, momentum) if config.nesterov else buffers  # type: ignore[arg-type]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        batches: dict[tuple[int, int], list[tuple[Tensor, Tensor, float]]] = collections.defaultdict(list)
        for p, update in zip(parameters, updates, strict=True):
            rows, columns = p.shape[-2:]
            for p_RC, update_RC in zip(p.reshape(-1, rows, columns).unbind(), update.reshape(-1, rows, columns).unbind(), strict=True):
                wide = (p_RC, update_RC, 1.0) if rows <= columns else (p_RC.mT, update_RC.mT, (rows / columns) ** 0.5)
                batches[min(rows, columns), max(rows, columns)].append(wide)
        dtype = torch.bfloat16 if has_fast_bf16(parameters[0].device) else torch.float32
        for batch in batches.values():
            result_NRC = orthogonalise(torch.stack([u for _, u, _ in batch]).to(dtype), config.ns_steps).to(parameters[0].dtype)
            for (p_RC, _, factor), direction_RC in zip(batch, result_NRC.unbind(), strict=True):
                p_RC.add_(direction_RC, alpha=-group["lr"] * factor)

    def _adamw(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for p in parameters:
            if not self.state[p]:
                step = torch.zeros((), device=p.device if p.is_cuda else None)
                self.state[p] |= {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        adamw(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
