"""Only the tokens that are worth learning (Rho-1, arXiv:2404.07965).

    excess_t = -log p(target_t) + log p_reference(target_t);  loss = mean of -log p over the keep_ratio of tokens with the highest excess

The choice is made within each sequence, so that it is the same for any micro-batch and any number of ranks (the paper ranks
the tokens of a batch). Without a reference the tokens with the highest loss are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feeb_models.objectives.common import loss_mask_or_ones, nll_per_token, with_auxiliary
from feeb_models.objectives.reference_model import ReferenceModel
from feeb_models.objectives.selective import SelectiveConfig
from feebcore.protocols import Batch, BuildContext, LanguageModel, Objective, ObjectiveOutput


class Selective(Objective):
    """count: tokens that are kept. A model in evaluation mode is scored on all tokens. metrics: nll, of those kept;
    excess, theirs over the reference."""

    selects = True

    def __init__(self, config: SelectiveConfig, context: BuildContext) -> None:
        self.keep_ratio = config.keep_ratio
        self.reference = ReferenceModel("selective", "reference", config.reference, config.reference_content) if config.reference else None

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        mask_BT = loss_mask_or_ones(batch)
        nll_BT = nll_per_token(model.lm_head, output.hidden, batch.targets, mask_BT, model.vocab_size)
        excess_BT = nll_BT.detach()
        if self.reference is not None:
            with torch.no_grad():
                theirs_BTC = self.reference.hidden(batch, model.vocab_size)
                excess_BT = excess_BT - nll_per_token(self.reference.logits, theirs_BTC, batch.targets, mask_BT, model.vocab_size)
        selected_BT = (highest(excess_BT, mask_BT, self.keep_ratio) if model.training else mask_BT).float()
        loss_sum, count = (nll_BT * selected_BT).sum(), selected_BT.sum()
        metrics = {"nll": loss_sum.detach(), "excess": (excess_BT * selected_BT).sum()}
        return ObjectiveOutput(with_auxiliary(loss_sum, count, output), count, metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return 0.0, 0.0 if self.reference is None else self.reference.flops(length)


def highest(score_BT: Tensor, mask_BT: Tensor, keep_ratio: float) -> Tensor:
    """[B,T] bool: in each row, of the places where mask is True, the keep_ratio with the highest scores, rounded up."""
    order_BT = score_BT.masked_fill(~mask_BT, float("-inf")).argsort(dim=1, descending=True, stable=True)
    num_B1 = torch.ceil(mask_BT.sum(1, keepdim=True) * keep_ratio - 1e-6)  # 0.6 * 5 is 3, whatever its last bits
    return order_BT.argsort(dim=1) < num_B1
