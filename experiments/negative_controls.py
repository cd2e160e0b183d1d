"""Negative controls: deliberate bugs as parts. A comparison must detect that they hurt."""

import feebcore as feeb


def build_double_softmax(config, context):
    """A softmax before a cross-entropy loss that applies its own."""
    from torch import nn

    from feebcore.protocols import ObjectiveOutput

    def objective(model, batch):
        hidden = model(batch.tokens, positions=batch.positions, doc_ids=batch.doc_ids).hidden
        logits = model.lm_head(hidden).float()[..., : model.vocab_size]
        loss = nn.functional.cross_entropy(logits.softmax(-1).flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return ObjectiveOutput(loss, batch.targets.numel())

    return objective


@feeb.hookimpl
def feeb_objectives():
    yield feeb.ObjectiveSpec("double_softmax", build=build_double_softmax, summary="Negative control: softmax before cross-entropy.")
