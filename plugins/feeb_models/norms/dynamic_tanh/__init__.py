"""Dynamic tanh."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class DynamicTanhConfig(feeb.PartConfig):
    alpha: float = Field(0.5, gt=0, description="initial value of the learned scale inside tanh")
    learnable: bool = Field(True, description="a gain and a shift per channel after tanh; the scale inside is always learned")


PART = feeb.NormSpec(
    "dynamic_tanh",
    DynamicTanhConfig,
    build=f"{__name__}.dynamic_tanh:DynamicTanh",
    summary="Dynamic tanh: tanh(alpha x) with learned alpha, gain and shift, without statistics.",
    reference="arXiv:2503.10622",
    since="1.1",
    equation="y = gain * tanh(α x) + shift      α one learned number",
)
