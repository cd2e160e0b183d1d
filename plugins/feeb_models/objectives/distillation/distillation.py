"""A student learns its teacher's whole distribution (arXiv:1503.02531).

    loss = (1 - weight) CE + weight temperature^2 KL(softmax(teacher / temperature) || softmax(student / temperature))

Both models' logits exist for a chunk of tokens at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from feeb_models.objectives.common import by_chunks, loss_mask_or_ones, with_auxiliary
from feeb_models.objectives.distillation import DistillationConfig
from feeb_models.objectives.reference_model import ReferenceModel
from feebcore.protocols import Batch, BuildContext, LanguageModel, Objective, ObjectiveOutput


class Distillation(Objective):
    """metrics: nll, the student's cross-entropy; kl, without the factor temperature^2."""

    def __init__(self, config: DistillationConfig, context: BuildContext) -> None:
        self.temperature, self.weight = config.temperature, config.weight
        self.teacher = ReferenceModel("distillation", "teacher", config.teacher, config.teacher_content)

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        theirs_BTC = self.teacher.hidden(batch, model.vocab_size)
        mask_BT = loss_mask_or_ones(batch)
        targets_N = batch.targets.masked_fill(~mask_BT, 0).flatten()

        def terms(hidden_NC: Tensor, theirs_NC: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
            logits_NV = model.lm_head(hidden_NC).float()
            own_NV = (logits_NV / self.temperature).log_softmax(-1)
            theirs_NV = (self.teacher.logits(theirs_NC) / self.temperature).log_softmax(-1)
            return F.cross_entropy(logits_NV, targets_N, reduction="none"), (theirs_NV.exp() * (theirs_NV - own_NV)).sum(-1)

        nll_N, kl_N = by_chunks(terms, output.hidden.flatten(0, 1), theirs_BTC.flatten(0, 1), targets_N, vocab_size=model.vocab_size)
        weight_N = mask_BT.flatten().float()
        nll, kl, count = torch.dot(nll_N, weight_N), torch.dot(kl_N, weight_N), weight_N.sum()
        loss_sum = (1 - self.weight) * nll + self.weight * self.temperature**2 * kl
        return ObjectiveOutput(with_auxiliary(loss_sum, count, output), count, {"nll": nll.detach(), "kl": kl.detach()})

    def extra_flops(self, model: LanguageModel, length: int) -> tuple[float, float]:
        return 0.0, self.teacher.flops(length)
