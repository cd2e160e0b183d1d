"""The next token and further ones (arXiv:2404.19737, arXiv:2412.19437).

    loss = sum_j w_j (1/N) sum_t -log p_j(token_{t+j} | tokens_<=t),  j = 1 … k

N counts targets of the next token, so that the first term is the usual loss and a target near the end of its document, which
has fewer places from which it can be foretold, weighs no more than others.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from feeb_models.objectives import MultiTokenConfig
from feeb_models.objectives.pieces import counted, counted_everywhere, with_auxiliary
from feebcore.model.loss import linear_cross_entropy
from feebcore.protocols import Batch, LanguageModel, ModelOutput, Objective, ObjectiveOutput


class MultiToken:
    """metrics: nats, of the next token; nats_j, of the j-th; share_j, how many targets the j-th has beside the next token's."""

    def __init__(self, config: MultiTokenConfig) -> None:
        self.config, self.weights = config, config.weights or (1.0,) * config.k

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        options = {"vocab_size": model.vocab_size, "z_loss": self.config.z_loss, "label_smoothing": self.config.label_smoothing}
        loss = linear_cross_entropy(model.lm_head, output.hidden, batch.targets, counted(batch), **options)  # type: ignore[arg-type]
        loss_sum, metrics = self.weights[0] * loss.loss_sum, {"nats": loss.nats}
        for distance, (hidden_BTC, head) in enumerate(self.mtp_outputs(model, batch, output), start=2):
            further = linear_cross_entropy(head, hidden_BTC, *targets_at(batch, distance), **options)  # type: ignore[arg-type]
            loss_sum = loss_sum + self.weights[distance - 1] * further.loss_sum
            metrics |= {f"nats_{distance}": further.nats, f"share_{distance}": further.count}
        return ObjectiveOutput(with_auxiliary(loss_sum, loss.count, output), loss.count, metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        if self.config.k == 1 or not hasattr(model.lm_head, "mtp_outputs"):
            return 0.0, 0.0
        if not hasattr(model.lm_head, "mtp_flops"):
            raise ValueError(
                f"objective multi_token: head {type(model.lm_head).__name__} does not say what its mtp_outputs cost; give it mtp_flops(model, length)"
            )
        return sum(model.lm_head.mtp_flops(model, length)[: self.config.k - 1]), 0.0  # type: ignore[operator]

    def mtp_outputs(self, model: LanguageModel, batch: Batch, output: ModelOutput) -> list[tuple[Tensor, nn.Module]]:
        wanted = self.config.k - 1
        if not wanted:
            return []
        if not hasattr(model.lm_head, "mtp_outputs"):
            raise ValueError(
                f"objective multi_token: head {type(model.lm_head).__name__} predicts the next token only; choose a head that has `mtp_outputs`, or set k: 1"
            )
        found = list(itertools.islice(model.lm_head.mtp_outputs(model, batch, output), wanted))  # type: ignore[operator]
        if len(found) < wanted:
            raise ValueError(f"objective multi_token: k: {self.config.k} needs {wanted} tokens after the next one, but the head predicts {len(found)}")
        return found


def targets_at(batch: Batch, distance: int) -> tuple[Tensor, Tensor]:
    """Targets [B,T] and mask [B,T]: position t holds the token `distance` places after tokens[:, t].

    It counts where it counts as the next token of the place before it, and stands in the window and in the document of
    tokens[:, t].
    """
    ahead = distance - 1
    targets_BT, mask_BT = batch.targets.roll(-ahead, 1), counted_everywhere(batch).roll(-ahead, 1)
    place_T = torch.arange(batch.targets.shape[1], device=batch.targets.device)
    mask_BT = mask_BT & (place_T < len(place_T) - ahead)
    if batch.doc_ids is not None:
        # the document of the target itself; beyond the window nobody knows it, and the mask alone decides, as for the next token
        reached_BT = torch.cat([batch.doc_ids[:, distance:], batch.doc_ids[:, -1:].expand(-1, distance)], 1)[:, : len(place_T)]
        mask_BT = mask_BT & (batch.doc_ids >= 0) & (reached_BT == batch.doc_ids)
    return targets_BT, mask_BT


def build_multi_token(config: MultiTokenConfig) -> Objective:
    return MultiToken(config)
