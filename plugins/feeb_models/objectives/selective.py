"""Only the tokens that are worth learning (Rho-1, arXiv:2404.07965).

    excess_t = -log p(target_t) + log p_reference(target_t);  loss = mean of -log p over the `share` of tokens with the highest excess

The choice is made within each window, so that it is the same for any micro-batch and any number of ranks (the paper ranks
the tokens of a batch). Without a reference the tokens with the highest loss are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from feeb_models.objectives import SelectiveConfig
from feeb_models.objectives.frozen import Frozen
from feeb_models.objectives.pieces import counted_everywhere, nats_per_token, with_auxiliary
from feebcore.protocols import Batch, LanguageModel, Objective, ObjectiveOutput


class Selective:
    """count: tokens that are kept. A model in evaluation mode is scored on all tokens. metrics: nats, of those kept;
    excess, theirs over the reference."""

    selects = True  # tells the contract that count may be less than the mask's

    def __init__(self, config: SelectiveConfig) -> None:
        self.share = config.share
        self.reference = Frozen("selective", "reference", config.reference, config.reference_content) if config.reference else None

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        mask_BT = counted_everywhere(batch)
        nats_BT = nats_per_token(model.lm_head, output.hidden, batch.targets, mask_BT, model.vocab_size)
        excess_BT = nats_BT.detach()
        if self.reference is not None:
            with torch.no_grad():
                theirs_BTC = self.reference.hidden(batch, model.vocab_size)
                excess_BT = excess_BT - nats_per_token(self.reference.logits, theirs_BTC, batch.targets, mask_BT, model.vocab_size)
        kept_BT = (highest(excess_BT, mask_BT, self.share) if getattr(model, "training", True) else mask_BT).float()
        loss_sum, count = (nats_BT * kept_BT).sum(), kept_BT.sum()
        metrics = {"nats": loss_sum.detach(), "excess": (excess_BT * kept_BT).sum()}
        return ObjectiveOutput(with_auxiliary(loss_sum, count, output), count, metrics)

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return 0.0, 0.0 if self.reference is None else self.reference.flops(length)


def highest(score_BT: Tensor, mask_BT: Tensor, share: float) -> Tensor:
    """[B,T] bool: in each row, of the places where mask is True, the `share` with the highest scores, rounded up."""
    order_BT = score_BT.masked_fill(~mask_BT, float("-inf")).argsort(dim=1, descending=True, stable=True)
    kept_B1 = torch.ceil(mask_BT.sum(1, keepdim=True) * share - 1e-6)  # 0.6 * 5 is 3, whatever its last bits
    return order_BT.argsort(dim=1) < kept_B1


def build_selective(config: SelectiveConfig) -> Objective:
    return Selective(config)
