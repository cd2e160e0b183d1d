"""Every layer predicts the next token, through the final norm and the head that all share.

loss = sum_l or mean_l of (1/N) sum_t -log softmax(head(final_norm(stream_l)))[target_t]
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor

from feeb_models.objectives.all_layer import AllLayerConfig, LocalGradientsConfig
from feeb_models.objectives.common import earlier_heads, loss_mask, loss_mask_or_ones, run_with_layers, with_auxiliary
from feebcore.model.loss import linear_cross_entropy
from feebcore.protocols import Batch, BuildContext, LanguageModel, Objective, ObjectiveOutput


class AllLayer(Objective):
    """metrics: nll, of the last layer; nll_layer_l of each layer l, counted from 0."""

    name = "all_layer"

    def __init__(self, config: AllLayerConfig, context: BuildContext) -> None:
        self.config = config

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output, hiddens = run_with_layers(self.name, model, batch, **self.run_options())
        masks, metrics = self.masks(model, batch, output.layers or [])
        scale = 1 / len(hiddens) if self.config.reduce == "mean" else 1.0
        options = {"vocab_size": model.vocab_size, "z_loss": self.config.z_loss, "label_smoothing": self.config.label_smoothing}
        losses = [linear_cross_entropy(model.lm_head, h, batch.targets, mask_BT, **options) for h, mask_BT in zip(hiddens, masks, strict=True)]  # type: ignore[arg-type]
        loss_sum = scale * losses[0].loss_sum
        for loss in losses[1:]:
            loss_sum = loss_sum + scale * loss.loss_sum
        metrics = {"nll": losses[-1].nll} | {f"nll_layer_{i}": loss.nll for i, loss in enumerate(losses)} | metrics
        return ObjectiveOutput(with_auxiliary(loss_sum, losses[0].count, output), losses[0].count, metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return earlier_heads(model, length), 0.0

    def run_options(self) -> dict[str, Any]:
        return {}

    def masks(self, model: LanguageModel, batch: Batch, streams: list[Tensor]) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        """Which targets count, for each layer, and metrics."""
        return [loss_mask(batch)] * len(streams), {}


class LocalGradients(AllLayer):
    """Each layer learns from its own prediction only: the stream is detached before each block but the first
    (greedy layer-wise training at once for all layers, arXiv:1901.08164). The embedding learns with the first layer, head and
    final norm with all.

    metrics: also change_l, |x_l - x_{l-1}| / |x_{l-1}| of the streams after the layers. stop_change c: once a place's change
    is below c, later layers are not trained on it; live_l is how many places layer l is trained on, and nll are theirs.
    """

    name = "local_gradients"
    config: LocalGradientsConfig

    def run_options(self) -> dict[str, Any]:
        return {"local_gradients": True}

    def masks(self, model: LanguageModel, batch: Batch, streams: list[Tensor]) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        live_BT = mask_BT = loss_mask_or_ones(batch)
        masks, metrics = [mask_BT], {}
        stops = self.config.stop_change > 0 and model.training  # validation text is scored whole
        for number, (before_BTC, after_BTC) in enumerate(itertools.pairwise(s.detach().float() for s in streams), start=1):
            change_BT = (after_BTC - before_BTC).norm(dim=-1) / before_BTC.norm(dim=-1).clamp(min=1e-6)
            metrics[f"change_{number}"] = (change_BT * mask_BT).sum()
            masks.append(live_BT)
            if stops:
                metrics[f"live_{number}"] = live_BT.float().sum()
                live_BT = live_BT & (change_BT >= self.config.stop_change)
        return list(masks), metrics
