"""What is minimised: nats summed over targets, and how many targets there were."""

from __future__ import annotations

from torch import Tensor

from feeb_models.objectives import NextTokenConfig
from feebcore.model.loss import linear_cross_entropy
from feebcore.protocols import Batch, LanguageModel, Objective, ObjectiveOutput


class NextToken:
    """-log p(targets_t | tokens_<=t) wherever the mask, if any, is True and the input is no padding."""

    def __init__(self, config: NextTokenConfig) -> None:
        self.config = config

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        output = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids)
        loss = linear_cross_entropy(
            model.head,
            output.hidden,
            batch.targets,
            counted(batch),
            vocab_size=model.vocab_size,
            z_loss=self.config.z_loss,
            label_smoothing=self.config.label_smoothing,
        )
        loss_sum = loss.loss_sum
        for extra in output.losses.values():
            loss_sum = loss_sum + extra * loss.count
        return ObjectiveOutput(loss_sum, loss.count, {"nats": loss.nats})


class CompletionOnly(NextToken):
    """The same on the completion's tokens alone; the batch's mask says which they are."""

    def __call__(self, model: LanguageModel, batch: Batch) -> ObjectiveOutput:
        if batch.mask is None:
            raise ValueError("objective completion_only: the batch has no mask that says which targets are completion; use next_token for plain text")
        return super().__call__(model, batch)


def counted(batch: Batch) -> Tensor | None:
    """[B,T] bool: targets that count; None: all."""
    if batch.doc_ids is None:
        return batch.mask
    real_BT = batch.doc_ids >= 0
    return real_BT if batch.mask is None else batch.mask & real_BT


def build_next_token(config: NextTokenConfig) -> Objective:
    return NextToken(config)


def build_completion_only(config: NextTokenConfig) -> Objective:
    return CompletionOnly(config)
