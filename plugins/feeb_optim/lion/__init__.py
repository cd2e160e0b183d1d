"""Lion: the sign of momentum."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import DECOUPLED, LR, AdamWConfig


class LionConfig(AdamWConfig):
    """An update is a sign, so learning rates are 3 to 10 times lower than AdamW's, and weight decay as much higher."""

    inert = ("eps",)
    lr: float = Field(5e-4, ge=0, description=f"{LR}; every weight moves by it each step")
    betas: tuple[float, float] = Field((0.95, 0.98), description="interpolation of the update's sign, and decay rate of the momentum that is kept")
    eps: float = Field(1e-8, gt=0, description="not used")
    weight_decay: float = Field(0.5, ge=0, description=DECOUPLED)


PART = feeb.OptimizerSpec(
    "lion",
    LionConfig,
    build=f"{__name__}.lion:Lion",
    summary="Lion: sign of an interpolated momentum; half of Adam's optimizer state.",
    reference="arXiv:2302.06675",
    since="1.1",
    equation="c = lerp(m, g, 1 − β1);   w −= η (sign(c) + λ w);   m = lerp(m, g, 1 − β2)",
)
