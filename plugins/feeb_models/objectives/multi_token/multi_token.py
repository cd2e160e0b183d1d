"""The next token and further ones (arXiv:2404.19737, arXiv:2412.19437).

    loss = sum_j w_j (1/N) sum_t -log p_j(token_{t+j} | tokens_<=t),  j = 1 … k

N counts targets of the next token, so that the first term is the usual loss and a target near the end of its document, which
has fewer places from which it can be foretold, weighs no more than others.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from feeb_models.objectives.common import loss_mask, loss_mask_or_ones, with_auxiliary
from feeb_models.objectives.multi_token import MultiTokenConfig
from feebcore.model.loss import linear_cross_entropy
from feebcore.protocols import Batch, BuildContext, LanguageModel, ModelOutput, Objective, ObjectiveOutput


class MultiToken(Objective):
    """metrics: nll, of the next token; nll_j, of the j-th; share_j, how many targets the j-th has in addition to the next token's."""

    def __init__(self, config: MultiTokenConfig, context: BuildContext) -> None:
        self.config, self.weights = config, config.weights or (1.0,) * config.k

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        options = {"vocab_size": model.vocab_size, "z_loss": self.config.z_loss, "label_smoothing": self.config.label_smoothing}
        loss = linear_cross_entropy(model.lm_head, output.hidden, batch.targets, loss_mask(batch), **options)  # type: ignore[arg-type]
        loss_sum, metrics = self.weights[0] * loss.loss_sum, {"nll": loss.nll}
        for distance, (hidden_BTC, head) in enumerate(self.mtp_outputs(model, batch, output), start=2):
            further = linear_cross_entropy(head, hidden_BTC, *targets_at(batch, distance), **options)  # type: ignore[arg-type]
            loss_sum = loss_sum + self.weights[distance - 1] * further.loss_sum
            metrics |= {f"nll_{distance}": further.nll, f"share_{distance}": further.count}
        return ObjectiveOutput(with_auxiliary(loss_sum, loss.count, output), loss.count, metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        if self.config.k == 1 or not model.lm_head.num_mtp:
            return 0.0, 0.0
        return sum(model.lm_head.mtp_flops(model, length)[: self.config.k - 1]), 0.0

    def mtp_outputs(self, model: LanguageModel, batch: Batch, output: ModelOutput) -> list[tuple[Tensor, nn.Module]]:
        further, head = self.config.k - 1, model.lm_head
        if not further:
            return []
        if not head.num_mtp:
            raise ValueError(
                f"objective multi_token: lm_head {type(head).__name__} predicts the next token only; choose one for multi-token prediction, or set k: 1"
            )
        if head.num_mtp < further:
            raise ValueError(f"objective multi_token: k: {self.config.k} needs {further} tokens after the next one, but the head predicts {head.num_mtp}")
        return list(itertools.islice(head.mtp_outputs(model, batch, output), further))


def targets_at(batch: Batch, distance: int) -> tuple[Tensor, Tensor]:
    """Targets [B,T] and mask [B,T]: position t holds the token `distance` places after tokens[:, t].

    It counts where it counts as the next token of the place before it, and stands in the window and in the document of
    tokens[:, t].
    """
    ahead = distance - 1
    targets_BT, mask_BT = batch.targets.roll(-ahead, 1), loss_mask_or_ones(batch).roll(-ahead, 1)
    place_T = torch.arange(batch.targets.shape[1], device=batch.targets.device)
    mask_BT = mask_BT & (place_T < len(place_T) - ahead)
    if batch.doc_ids is not None:
        # the document of the target itself; beyond the window nobody knows it, and the mask alone decides, as for the next token
        reached_BT = torch.cat([batch.doc_ids[:, distance:], batch.doc_ids[:, -1:].expand(-1, distance)], 1)[:, : len(place_T)]
        mask_BT = mask_BT & (batch.doc_ids >= 0) & (reached_BT == batch.doc_ids)
    return targets_BT, mask_BT
