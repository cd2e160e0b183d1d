"""Grokfast: amplified slow gradients, for any optimizer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import feebcore as feeb
from feebcore import Part, PartConfig, PartKey, default_part


class GrokfastConfig(PartConfig):
    """Adds a slow average of the gradients to the gradients that `optimizer` gets."""

    optimizer: Annotated[Part, PartKey("optimizers")] = Field(default_part("adamw"), description="optimizer that the amplified gradients are passed to")
    alpha: float = Field(0.98, ge=0, lt=1, description="decay rate of the average")
    lamb: float = Field(2.0, ge=0, description="weight of the average (lambda in the paper), added to the gradient")


PART = feeb.OptimizerSpec(
    "grokfast",
    GrokfastConfig,
    build=f"{__name__}.grokfast:grokfast",
    summary="Any optimizer on gradients with their slow part amplified.",
    reference="arXiv:2405.20233",
    since="1.1",
    equation="h = lerp(h, g, 1 − alpha)  (h = g at first);   the inner optimizer is given g + lamb h",
)
