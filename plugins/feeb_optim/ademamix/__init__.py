"""AdEMAMix: Adam with a second, slow momentum."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import BETAS, AdamWConfig


class AdEMAMixConfig(AdamWConfig):
    betas: tuple[float, float] = Field((0.9, 0.999), description=BETAS)
    slow_beta: float = Field(0.9999, ge=0, lt=1, description="decay rate of the second, slow average of gradients")
    alpha: float = Field(5.0, ge=0, description="weight of the slow average, relative to the fast one")
    warmup_steps: int = Field(0, ge=0, description="steps over which alpha and slow_beta rise to these values; the authors use the run's length")


PART = feeb.OptimizerSpec(
    "ademamix",
    AdEMAMixConfig,
    build=f"{__name__}.ademamix:AdEMAMix",
    summary="AdamW with a second, much slower momentum.",
    reference="arXiv:2409.03137",
    since="1.1",
    equation="m1 = lerp(m1, g, 1 − β1);   m2 = lerp(m2, g, 1 − slow_beta);   v = lerp(v, g², 1 − β2)\n"
    "w −= η ((m1/(1 − β1^n) + alpha m2) / (√(v/(1 − β2^n)) + eps) + λ w)",
)
