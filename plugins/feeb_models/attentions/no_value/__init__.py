"""Attention without a value matrix."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.attentions.options import AttentionConfig


class NoValueConfig(AttentionConfig):
    projection: bool = Field(True, description="multiply the result with an output matrix")


PART = feeb.AttentionSpec(
    "no_value",
    NoValueConfig,
    build=f"{__name__}.no_value:NoValueAttention",
    summary="Attention without value projection: the summed attention weights of all heads are applied to the input (simplified attention).",
    reference="arXiv:2311.01906",
    since="1.1",
    equation="A_h = softmax(rot(q_h) rot(k_h)ᵀ / √D + b_h);   y = W_o (Σ_h A_h) x",
)
