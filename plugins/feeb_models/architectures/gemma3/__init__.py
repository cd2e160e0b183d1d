"""Gemma 3."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Block, Embedding, Feedforward, LMHead


class Gemma3Config(PresetConfig):
    """Gemma 3: five sliding-window layers to one of full attention, one key/value head, normalized queries and keys, geglu, sandwich
    norms, embedding times sqrt(d_model), tied LM head. Its windows are of 512 or 1024 tokens; global layers rotate with base
    1,000,000 there, here all layers have one base."""

    attention: Attention = default_part("local_global", pattern="LLLLLG", window=64, num_kv_heads=1, qk_norm=True)
    feedforward: Feedforward = default_part("geglu", expansion_ratio=6.0)
    block: Block = default_part("sandwich")
    embedding: Embedding = default_part("scaled")
    lm_head: LMHead = default_part("tied")


PART = feeb.ArchitectureSpec(
    "gemma3",
    Gemma3Config,
    build=BUILD,
    summary="Gemma 3: sliding-window and full attention 5:1, geglu, sandwich norms, tied LM head.",
    reference="arXiv:2503.19786",
    since="1.1",
)
