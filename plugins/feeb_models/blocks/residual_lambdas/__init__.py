"""Pre-norm on a learned mix of the stream and its start."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class ResidualLambdasConfig(feeb.PartConfig):
    stream: float = Field(1.0, description="initial value of l0, the factor on the stream")
    start: float = Field(0.0, description="initial value of l1, the factor on the stream before the first block")


PART = feeb.BlockSpec(
    "residual_lambdas",
    ResidualLambdasConfig,
    build=f"{__name__}.residual_lambdas:ResidualLambdas",
    summary="Pre-norm with learned residual scalars: each block reads lambda0 * x + lambda1 * x0, x0 the embedding output (modded-nanogpt).",
    reference="https://github.com/KellerJordan/modded-nanogpt",
    since="1.1",
    equation="v = λ0 r + λ1 r_0;   u = v + a(norm v);   r' = u + m(norm u)      r_0: the stream before the first block",
)
