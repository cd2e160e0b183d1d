"""Adafactor (arXiv:1804.04235, Algorithms 4 and 5) by torch's function, whose state is rows + columns instead of rows x columns.

    V_ij ~ row_i column_j / mean(row), averages of g^2 that forget by t^-0.8;  U = g / sqrt(V), clipped to a root mean square of 1
    w -= max(min_scale, RMS(w)) min(lr, 1 / sqrt(t)) U

Row and column means are of whole matrices, so sharded ones are gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._adafactor import adafactor

from feeb_optim.adafactor import AdafactorConfig
from feeb_optim.role_groups import role_group
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import gather_full, is_sharded, local_shard, slice_like
from feebcore.train.optimizer import Optimizer


class Adafactor(Optimizer):
    def __init__(self, config: AdafactorConfig, context: BuildContext) -> None:
        options = {k: getattr(config, k) for k in ("beta2_decay", "clip_threshold", "eps", "min_scale")}
        super().__init__([role_group(config, g, **options) for g in context.groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for p in parameters:
                self._begin(p)
            for several in ([p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim < 2]):
                if several:
                    self._step(group, several)

    def _begin(self, p: Any) -> None:
        state = self.state[p]
        if "step" in state:
            return
        state["step"] = torch.zeros(())
        if p.ndim > 1:  # one dimension more than the parameter: whole on every rank
            state["rows"] = local_shard(p).new_zeros(1, *p.shape[:-1], 1)
            state["columns"] = local_shard(p).new_zeros(1, *p.shape[:-2], 1, p.shape[-1])
        else:
            state["exp_avg_sq"] = torch.zeros_like(local_shard(p))

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        states = [self.state[p] for p in parameters]
        weights = [gather_full(local_shard(p), p) for p in parameters]
        squares: list[Tensor | None] = [
            gather_full(local_shard(s["exp_avg_sq"]), p) if "exp_avg_sq" in s else None for s, p in zip(states, parameters, strict=True)
        ]
        adafactor(
            weights,
            [gather_full(local_shard(p.grad), p) for p in parameters],
            [s["rows"][0] if "rows" in s else None for s in states],
            [s["columns"][0] if "columns" in s else None for s in states],
            squares,
            [s["step"] for s in states],
            foreach=True,
            d=group["clip_threshold"],
            lr=group["lr"],
            beta2_decay=-group["beta2_decay"],
            weight_decay=group["weight_decay"],
            eps1=group["eps"],
            eps2=group["min_scale"],
            maximize=False,
        )
        for p, state, weight, square in zip(parameters, states, weights, squares, strict=True):
            if is_sharded(p):
                local_shard(p).copy_(slice_like(weight, p))
                if square is not None:
                    local_shard(state["exp_avg_sq"]).copy_(slice_like(square, p))
