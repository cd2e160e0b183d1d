"""Qwen3."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Feedforward, LMHead, Norm, Position


class Qwen3Config(PresetConfig):
    """The small Qwen3: grouped queries with normalized queries and keys, SwiGLU of three times the width, rotary positions of base 1,000,000, tied LM head."""

    attention: Attention = default_part("gqa", qk_norm=True)
    feedforward: Feedforward = default_part("swiglu", expansion_ratio=3.0)
    norm: Norm = default_part("rmsnorm")
    position: Position = default_part("rope", base=1_000_000.0)
    lm_head: LMHead = default_part("tied")


PART = feeb.ArchitectureSpec(
    "qwen3",
    Qwen3Config,
    build=BUILD,
    summary="Qwen3: Llama's parts with normalized queries and keys and a tied LM head.",
    reference="arXiv:2505.09388",
    since="1.1",
)
