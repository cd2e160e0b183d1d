"""Two attentions in a pattern over layers: a layer is one or the other, with that one's cost and cache."""

from __future__ import annotations

from feeb_models.attentions.interleaved import InterleavedConfig
from feebcore.model.parts import AttentionPart
from feebcore.protocols import BuildContext


def build_interleaved(config: InterleavedConfig, context: BuildContext) -> AttentionPart:
    letter = config.pattern[context.layer % len(config.pattern)]
    return (config.a if letter == "A" else config.b).build(context)
