"""Negative controls: deliberate bugs as parts. A comparison must detect that they hurt."""

import feebcore as feeb
from feebcore.protocols import Objective, ObjectiveOutput


class DoubleSoftmax(Objective):
    """A softmax before a cross-entropy loss that applies its own."""

    def __init__(self, config, context):
        pass

    def __call__(self, model, batch):
        from torch.nn import functional as F

        hidden = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids).hidden
        logits = model.lm_head(hidden).float()[..., : model.vocab_size]
        loss = F.cross_entropy(logits.softmax(-1).flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return ObjectiveOutput(loss, batch.targets.numel())


@feeb.hookimpl
def feeb_objectives():
    yield feeb.ObjectiveSpec("double_softmax", build=DoubleSoftmax, summary="Negative control: softmax before cross-entropy.")
