"""LayerNorm."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class LayerNormConfig(feeb.PartConfig):
    learnable: bool = Field(True, description="a learned gain per channel")
    eps: float = Field(1e-5, gt=0, description="added to the variance")
    bias: bool = Field(True, description="with learnable: a learned shift per channel too")


PART = feeb.NormSpec(
    "layernorm",
    LayerNormConfig,
    build=f"{__name__}.layernorm:LayerNorm",
    summary="LayerNorm: (x - mean) / standard deviation, with or without gain and shift.",
    reference="arXiv:1607.06450",
    equation="y = gain * (x − mean(x)) / √(var(x) + eps) + shift      over the C channels",
)
