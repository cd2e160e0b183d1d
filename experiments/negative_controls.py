"""Mistakes that the notebook made, as parts: a comparison that does not see that they hurt sees nothing."""

import feebcore as feeb


def build_double_softmax(config):
    """Cross-entropy of log-probabilities of probabilities: softmax before a loss that has its own."""
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
