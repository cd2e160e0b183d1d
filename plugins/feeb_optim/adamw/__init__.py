"""AdamW and Adam."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import AdamWConfig


class AdamConfig(AdamWConfig):
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty: weight_decay * weights is added to the gradient, and normalized with it")


PARTS = (
    feeb.OptimizerSpec(
        "adamw",
        AdamWConfig,
        build=f"{__name__}.adamw:AdamW",
        summary="Adam with decoupled weight decay.",
        reference="arXiv:1711.05101",
        equation="m = lerp(m, g, 1 − β1);   v = lerp(v, g², 1 − β2)\nw −= η (m/(1 − β1^n) / (√(v/(1 − β2^n)) + eps) + λ w)",
    ),
    feeb.OptimizerSpec(
        "adam",
        AdamConfig,
        build=f"{__name__}.adamw:Adam",
        summary="Adam, weight decay as an L2 penalty.",
        reference="arXiv:1412.6980",
        since="1.1",
        equation="g += λ w;   then as adamw with λ = 0",
    ),
)
