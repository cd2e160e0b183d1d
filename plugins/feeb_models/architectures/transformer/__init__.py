"""The transformer, assembled from parts."""

from __future__ import annotations

import feebcore as feeb
from feebcore import default_part
from feebcore.model.config import Attention, Block, Embedding, Feedforward, Initialization, LMHead, Norm, Position, Stack
from feebcore.model.config import TransformerConfig as AnyTransformerConfig


class TransformerConfig(AnyTransformerConfig):
    """A pre-norm transformer with rotary positions, unless parts are chosen otherwise."""

    attention: Attention = default_part("mha")
    feedforward: Feedforward = default_part("gelu")
    norm: Norm = default_part("rmsnorm")
    position: Position = default_part("rope")
    block: Block = default_part("prenorm")
    stack: Stack = default_part("sequential")
    embedding: Embedding = default_part("standard")
    lm_head: LMHead = default_part("linear")
    initialization: Initialization = default_part("normal")


BUILD = f"{__name__}.transformer:build_transformer"

PART = feeb.ArchitectureSpec(
    "transformer",
    TransformerConfig,
    build=BUILD,
    summary="Decoder-only transformer assembled from parts.",
    reference="arXiv:1706.03762",
)
