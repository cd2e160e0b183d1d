"""Gradients, weights and updates by layer: which layers learn, and how far a step moves them.

An update of about a thousandth of the weights is the usual advice; a layer far below it stands still, one far above it
is being thrown about.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from feeb_tracking.gradients import GradientsConfig
from feeb_tracking.probe import Probe, is_sharded
from feebcore.protocols import BuildContext
from feebcore.train.callbacks import RunContext
from feebcore.train.probing import layer_of


class Gradients(Probe):
    """A row has `layers`, each with its name and L2 norms: gradient (as the optimizer gets it, clipped), weight (before
    the step), and update (after minus before). Rows of skipped steps are left out."""

    name = "gradients"
    of_model = False

    def __init__(self, config: GradientsConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.rows: list[dict[str, Any]] = []
        self.before: list[Tensor] = []

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.active = not is_sharded(run)
        if not self.active:
            run.out.log(f"callback {self.name}: gradients are sharded (parallel.strategy: fsdp), so there is nothing to measure")
        self.parameters = {n: p for n, p in run.model.named_parameters() if p.requires_grad}
        self.layers = list(dict.fromkeys(map(layer_of, self.parameters)))
        self.index = torch.tensor([self.layers.index(layer_of(name)) for name in self.parameters], device=run.device)

    @torch.no_grad()
    def on_gradients(self, step: int, scale: Tensor | float = 1.0) -> None:
        if not self.due(step):
            return
        weights: list[Tensor] = list(self.parameters.values())
        gradients = [torch.zeros((), device=p.device) if p.grad is None else p.grad for p in weights]
        norms = torch.stack([self.by_layer(gradients) * scale, self.by_layer(weights)]).tolist()
        self.rows = [{"layer": name, "gradient": g, "weight": w} for name, g, w in zip(self.layers, *norms, strict=True)]
        self.before = [p.detach().clone() for p in weights] if self.config.updates else []

    @torch.no_grad()
    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if not (self.rows and self.due(step)):
            return
        if self.before:
            torch._foreach_sub_(self.before, list(self.parameters.values()))
            for row, update in zip(self.rows, self.by_layer(self.before).tolist(), strict=True):
                row["update"] = update
        self.write(step, {"layers": self.rows})
        self.rows, self.before = [], []

    def by_layer(self, tensors: list[Tensor]) -> Tensor:
        """L2 norm of each layer's tensors together: [layers] fp32."""
        squares = torch.stack([n.float() for n in torch._foreach_norm(tensors)]).square()
        one_hot = (self.index[None] == torch.arange(len(self.layers), device=squares.device)[:, None]).float()
        return (one_hot * squares).sum(1).sqrt()  # no matrix product: that may be rounded to TF32
