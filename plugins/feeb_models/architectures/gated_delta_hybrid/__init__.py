"""A hybrid of gated delta rule and full attention."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.architectures.presets import PresetConfig
from feeb_models.architectures.transformer import BUILD
from feebcore import default_part
from feebcore.model.config import Attention, Feedforward


class GatedDeltaHybridConfig(PresetConfig):
    """Three layers of gated delta rule to one of full attention with normalized queries and keys, swiglu: three quarters of the
    layers keep a state of fixed size instead of a cache."""

    inert = (*PresetConfig.inert, "attention_dropout")  # two layers have no full attention yet
    attention: Attention = default_part("interleaved", pattern="AAAB", a=default_part("gated_delta"), b=default_part("mha", qk_norm=True))
    feedforward: Feedforward = default_part("swiglu")


PART = feeb.ArchitectureSpec(
    "gated_delta_hybrid",
    GatedDeltaHybridConfig,
    build=BUILD,
    summary="Hybrid: three layers of gated delta rule to one of full attention.",
    reference="arXiv:2412.06464",
    since="1.1",
)
