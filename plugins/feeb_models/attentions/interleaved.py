"""Two attentions in a pattern over layers: a layer is one or the other, with that one's cost and cache."""

from __future__ import annotations

from torch import nn

from feeb_models.attentions import InterleavedConfig
from feebcore.protocols import BlockShape


def build_interleaved(config: InterleavedConfig, block: BlockShape) -> nn.Module:
    letter = config.pattern[block.layer % len(config.pattern)]
    return (config.a if letter == "A" else config.b).build(block)
