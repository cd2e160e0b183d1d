"""Schedule-free AdamW."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import AdamWConfig


class ScheduleFreeConfig(AdamWConfig):
    """AdamW whose weights for evaluation are an average over the run: use it with schedule: constant and a warmup."""

    betas: tuple[float, float] = Field(
        (0.9, 0.95),
        description="interpolation weight of the average in the weights at which gradients are taken; decay rate of the average of squared gradients",
    )
    weight_power: float = Field(2.0, ge=0, description="a step's weight in the average is its largest learning rate so far to this power …")
    step_power: float = Field(0.0, ge=0, description="… times its number to this power")


PART = feeb.OptimizerSpec(
    "schedule_free",
    ScheduleFreeConfig,
    build=f"{__name__}.schedule_free:ScheduleFreeAdamW",
    summary="AdamW with weight averaging in place of learning-rate decay.",
    reference="arXiv:2405.15682",
    since="1.1",
    equation="g taken at w = β1 x + (1 − β1) z;   v = lerp(v, g², 1 − β2);   d = g / (√(v/(1 − β2^n)) + eps) + λ w\n"
    "z −= η d;   x = lerp(x, z, c_n),   c_n = η_max,n² / Σ_{i ≤ n} η_max,i²  (η_max,n: largest η so far);   evaluated at x",
)
