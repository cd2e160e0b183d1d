"""Law `frontier`: the loss of the best allocation against compute, from isoFLOP minima."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb


class FrontierConfig(feeb.PartConfig):
    """How the minimum of a budget is found."""

    method: Literal["parabola", "akima"] = Field(
        "parabola", description="minimum along a budget: a robust parabola through the nearest sizes, or Akima interpolation"
    )


PART = feeb.LawSpec(
    "frontier",
    FrontierConfig,
    build=f"{__name__}.frontier:FrontierLaw",
    summary="L = E + A C^-gamma through isoFLOP minima, and N_opt = k C^a: a second opinion that assumes little; says nothing off the frontier.",
    reference="arXiv:2203.15556, arXiv:2406.19146",
)
