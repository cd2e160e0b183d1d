"""Llama 3."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Feedforward, Norm, Position


class LlamaConfig(PresetConfig):
    """Llama 3: grouped queries, SwiGLU, RMS norms (eps 1e-5), rotary positions of base 500,000, an untied LM head, no biases."""

    attention: Attention = default_part("gqa")
    feedforward: Feedforward = default_part("swiglu")
    norm: Norm = default_part("rmsnorm", eps=1e-5)
    position: Position = default_part("rope", base=500_000.0)


PART = feeb.ArchitectureSpec(
    "llama",
    LlamaConfig,
    build=BUILD,
    summary="Llama 3: grouped queries, SwiGLU, RMS norms, rotary positions, no biases.",
    reference="arXiv:2407.21783",
    since="1.1",
)
