"""RMSNorm."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class RMSNormConfig(feeb.PartConfig):
    learnable: bool = Field(True, description="a learned gain per channel")
    eps: float = Field(1e-6, gt=0, description="added to the mean square")


PART = feeb.NormSpec(
    "rmsnorm",
    RMSNormConfig,
    build=f"{__name__}.rmsnorm:RMSNorm",
    summary="RMSNorm: x / root mean square, with or without gain.",
    reference="arXiv:1910.07467",
    equation="y = gain * x / √(mean(x²) + eps)      over the C channels",
)
