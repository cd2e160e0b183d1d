"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, then the nearest orthogonal matrix.

    m = lerp(m, g, 1 - momentum);  u = lerp(g, m, momentum)            (Nesterov)
    W -= lr sqrt(max(1, rows / columns)) NewtonSchulz5(u)              NewtonSchulz5(U S V^T) ~ U V^T

for the role 'matrix'; AdamW for the other roles. NorMuon (arXiv:2510.05491) divides each row of NewtonSchulz5(u) by the
root of an average of its mean square and then brings the matrix back to the norm it had, so that Muon's learning rates
apply.

Matrices of one shape, transposed or not, are orthogonalized as one batch, in bf16 where the hardware has it (`ns_precision`): 9 ms a step
for twelve 256 x 256 matrices on two cores, 46 ms in fp32. Of several ranks each does a share.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from feeb_optim.elementwise import gradients_of, shards_of, state_of
from feeb_optim.matrix_optimizer import MatrixOptimizer, groups_of
from feeb_optim.muon import MuonConfig, NorMuonConfig
from feebcore.model.precision import has_fast_bf16
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import local_shard

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(x_NRC: Tensor, steps: int = 5) -> Tensor:
    """Batched Newton-Schulz: matrices [N,R,C], R <= C, with all singular values moved to about 1 (0.7 to 1.2).

    In the dtype given. Cost: 2 N steps (2 R^2 C + R^3) multiply-adds; for wide matrices in fp32 2 N (R^2 C + 2 steps R^3).
    """
    x_NRC = x_NRC / (x_NRC.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7) * 1.02).to(x_NRC.dtype)
    if x_NRC.shape[-1] >= 2 * x_NRC.shape[-2] and x_NRC.dtype == torch.float32:
        return _through_gram(x_NRC, steps)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram_NRR = x_NRC @ x_NRC.mT
        polynomial_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        x_NRC = torch.baddbmm(x_NRC, polynomial_NRR, x_NRC, beta=a)
    return x_NRC


def _through_gram(x_NRC: Tensor, steps: int) -> Tensor:
    """The same polynomials in G = X X^T: X' = Q X with Q = a + b G + c G^2, so G' = Q G Q, and the factors of X gather in P.

    1.7 times as fast as the iteration above for matrices four times as wide as high; in bf16 it would lose small singular values.
    """
    a, b, c = COEFFICIENTS
    gram_NRR, product_NRR = x_NRC @ x_NRC.mT, None
    for step in range(steps):
        factor_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=b, alpha=c)
        factor_NRR.diagonal(dim1=-2, dim2=-1).add_(a)
        product_NRR = factor_NRR if product_NRR is None else factor_NRR @ product_NRR
        if step < steps - 1:
            gram_NRR = factor_NRR @ gram_NRR @ factor_NRR
    assert product_NRR is not None
    return product_NRR @ x_NRC


def orthogonalize_all(matrices: list[Tensor], steps: int, precision: str = "auto") -> list[Tensor]:
    """Each matrix [..., R, C] of the list orthogonalized; those of one shape as one batch. precision: auto, bf16 or fp32, of the
    iterations; what is returned has the matrices' dtype."""
    batches: dict[tuple[int, int], list[tuple[int, Tensor]]] = collections.defaultdict(list)
    for i, matrix in enumerate(matrices):
        for x_RC in matrix.reshape(-1, *matrix.shape[-2:]).unbind():
            rows, columns = x_RC.shape
            batches[min(rows, columns), max(rows, columns)].append((i, x_RC if rows <= columns else x_RC.mT))
    results: list[list[Tensor]] = [[] for _ in matrices]
    if precision == "auto":
        precision = "bf16" if has_fast_bf16(matrices[0].device) else "fp32"
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    for batch in batches.values():
        result_NRC = orthogonalize(torch.stack([x for _, x in batch]).to(dtype), steps).to(matrices[0].dtype)
        for (i, _), x_RC in zip(batch, result_NRC.unbind(), strict=True):
            results[i].append(x_RC if matrices[i].shape[-2] <= matrices[i].shape[-1] else x_RC.mT)
    return [torch.stack(several).reshape(m.shape) if m.ndim > 2 else several[0] for several, m in zip(results, matrices, strict=True)]


class Muon(MatrixOptimizer):
    counters = ("steps",)

    def __init__(self, config: MuonConfig, context: BuildContext, **options: Any) -> None:
        self.config = config
        super().__init__(groups_of(config, context.groups, momentum=config.momentum, steps=0, **options), context, config.split_fused)

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        config, lr = self.config, group["lr"]
        group["steps"] += 1
        momentum = group["momentum"]
        if config.momentum_warmup:
            momentum = 0.85 + (momentum - 0.85) * min(1.0, (group["steps"] - 1) / config.momentum_warmup)
        weights, gradients, buffers = shards_of(parameters), gradients_of(parameters), state_of(self, parameters, "momentum")
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum) if config.nesterov else buffers
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])

        def compute(several: list[Any], whole: list[list[Tensor]]) -> list[list[Tensor]]:
            return [[direction] for direction in self.directions(group, several, [update for (update,) in whole])]

        for p, (direction,) in self.by_owners(group).compute({p: [u] for p, u in zip(parameters, updates, strict=True)}, 1, compute):
            factor = stretch(p) if len(self.rows_of(p)) == 1 else 1.0  # foreach has no factor a tensor
            local_shard(p).add_(direction, alpha=-lr * factor)

    def directions(self, group: dict[str, Any], parameters: list[Any], updates: list[Tensor]) -> list[Tensor]:
        """Of whole matrices; maps that share one are stretched."""
        whole = [self.maps_of(u, p) for u, p in zip(updates, parameters, strict=True)]
        orthogonal = iter(orthogonalize_all([map_RC for maps in whole for map_RC in maps], self.config.ns_steps, self.config.ns_precision))
        directions = self.normalized(group, parameters, [joined([next(orthogonal) for _ in maps]) for maps in whole])
        for direction, p in zip(directions, parameters, strict=True):
            if len(maps := self.maps_of(direction, p)) > 1:
                torch._foreach_mul_(maps, [stretch(map_RC) for map_RC in maps])
        return directions

    def maps_of(self, x: Tensor, parameter: Any) -> list[Tensor]:
        """The maps [..., r, C] in a matrix [..., R, C] that belongs to the parameter, as views."""
        return list(x.split(self.rows_of(parameter), dim=-2))

    def normalized(self, group: dict[str, Any], parameters: list[Any], directions: list[Tensor]) -> list[Tensor]:
        """The orthogonal directions as they are."""
        return directions


class NorMuon(Muon):
    kept_by_owner = ("row_mean_square",)

    def __init__(self, config: NorMuonConfig, context: BuildContext) -> None:
        super().__init__(config, context, row_beta=config.beta2)

    def matrix_step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        for p in parameters:
            if "row_mean_square" not in self.state[p]:
                self.state[p]["row_mean_square"] = local_shard(p).new_zeros(1, *p.shape[:-1], 1)
        super().matrix_step(group, parameters)

    def normalized(self, group: dict[str, Any], parameters: list[Any], directions: list[Tensor]) -> list[Tensor]:
        averages = [self.state[p]["row_mean_square"][0] for p in parameters]
        torch._foreach_lerp_(averages, [d.square().mean(-1, keepdim=True) for d in directions], 1 - group["row_beta"])
        sizes = torch._foreach_sqrt(averages)
        torch._foreach_add_(sizes, 1e-10)
        evened = torch._foreach_div(directions, sizes)
        before, after = (torch._foreach_norm(self.matrices_of(several, parameters)) for several in (directions, evened))
        torch._foreach_mul_(self.matrices_of(evened, parameters), torch._foreach_div(before, torch._foreach_add(after, 1e-10)))
        return list(evened)

    def matrices_of(self, tensors: Sequence[Tensor], parameters: list[Any]) -> list[Tensor]:
        """Every matrix [R,C] in the tensors [..., R, C] that belong to the parameters, maps apart, as views."""
        stacks = [t.view(-1, *t.shape[-2:]) for t in tensors]
        return [matrix for stack, p in zip(stacks, parameters, strict=True) for maps in self.maps_of(stack, p) for matrix in maps.unbind()]


def stretch(x: Any) -> float:
    """sqrt(max(1, rows / columns)), by which an orthogonal direction is multiplied."""
    return float(max(1.0, x.shape[-2] / x.shape[-1]) ** 0.5)


def joined(maps: list[Tensor]) -> Tensor:
    """The inverse of `maps_of`."""
    return maps[0] if len(maps) == 1 else torch.cat(maps, dim=-2)
