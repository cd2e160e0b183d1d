"""Adafactor (arXiv:1804.04235, Algorithms 4 and 5) by torch's function, whose state is rows + columns instead of rows x columns.

    V_ij ~ row_i column_j / mean(row), averages of g^2 that forget by t^-0.8;  U = g / sqrt(V), clipped to a root mean square of 1
    w -= max(min_scale, RMS(w)) min(lr, 1 / sqrt(t)) U

Row and column means are of whole matrices, so of sharded ones each is gathered on one rank, which takes its step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim._adafactor import adafactor

from feeb_optim.adafactor import AdafactorConfig
from feeb_optim.owners import OwnersOptimizer
from feeb_optim.role_groups import role_group
from feebcore.protocols import BuildContext
from feebcore.train.dtensor import local_shard


class Adafactor(OwnersOptimizer):
    kept_by_owner = ("rows", "columns")

    def __init__(self, config: AdafactorConfig, context: BuildContext) -> None:
        options = {k: getattr(config, k) for k in ("beta2_decay", "clip_threshold", "eps", "min_scale")}
        super().__init__([role_group(config, g, **options) for g in context.groups], world=1)

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
        """One step of matrices, or of vectors, whose squares are not factored."""
        inputs = {p: [local_shard(p), local_shard(p.grad)] for p in parameters}
        if parameters[0].ndim < 2:
            inputs = {p: [*several, local_shard(self.state[p]["exp_avg_sq"])] for p, several in inputs.items()}

        def compute(several: list[Any], whole: list[list[Tensor]]) -> list[list[Tensor]]:
            states = [self.state[p] for p in several]
            adafactor(
                [weight for weight, *_ in whole],
                [gradient for _, gradient, *_ in whole],
                [s["rows"][0] if "rows" in s else None for s in states],
                [s["columns"][0] if "columns" in s else None for s in states],
                [square[0] if square else None for _, _, *square in whole],
                [s["step"].clone() for s in states],
                foreach=True,
                d=group["clip_threshold"],
                lr=group["lr"],
                beta2_decay=-group["beta2_decay"],
                weight_decay=group["weight_decay"],
                eps1=group["eps"],
                eps2=group["min_scale"],
                maximize=False,
            )
            return [[weight, *square] for weight, _, *square in whole]

        for p, results in self.by_owners(group).compute(inputs, len(inputs[parameters[0]]) - 1, compute):
            self.state[p]["step"] += 1
            weight, _, *square = inputs[p]
            for target, value in zip((weight, *square), results, strict=True):
                target.copy_(value)
