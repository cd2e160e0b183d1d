"""Next-token cross-entropy: nats summed over targets, and how many targets there were."""

from __future__ import annotations

from feeb_models.objectives.common import loss_mask, with_auxiliary
from feeb_models.objectives.options import NextTokenConfig
from feebcore.model.loss import linear_cross_entropy
from feebcore.protocols import Batch, BuildContext, LanguageModel, ModelOutput, Objective, ObjectiveOutput


class NextToken(Objective):
    """-log p(targets_t | tokens_<=t) wherever the mask, if any, is True and the input is no padding."""

    def __init__(self, config: NextTokenConfig, context: BuildContext) -> None:
        self.config = config

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = self.run(model, batch)
        loss = linear_cross_entropy(
            model.lm_head,
            output.hidden,
            batch.targets,
            loss_mask(batch),
            vocab_size=model.vocab_size,
            z_loss=self.config.z_loss,
            label_smoothing=self.config.label_smoothing,
        )
        return ObjectiveOutput(with_auxiliary(loss.loss_sum, loss.count, output), loss.count, {"nll": loss.nll})

    def run(self, model: LanguageModel, batch: Batch) -> ModelOutput:
        return model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)


class CompletionOnly(NextToken):
    """The same on the completion's tokens alone; the batch's mask says which they are."""

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        if batch.mask is None:
            raise ValueError("objective completion_only: the batch has no mask that says which targets are completion; use next_token for plain text")
        return super().__call__(model, batch)
