"""Law `chinchilla`: loss as a sum of power laws in parameters and tokens."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb


class ChinchillaConfig(feeb.PartConfig):
    """How the fit is started, and what it minimizes."""

    grid: str = Field(
        "fast",
        pattern="^(fast|published)$",
        description="starting points: 'fast' has 108, derived from the data; 'published' the 4,500 of Hoffmann et al. (minutes)",
    )
    loss: Literal["huber_log", "least_squares"] = Field(
        "huber_log", description="of the residual of ln(loss): Huber's with delta 0.001 (a median, robust), or its square"
    )


PART = feeb.LawSpec(
    "chinchilla",
    ChinchillaConfig,
    build=f"{__name__}.chinchilla:Chinchilla",
    summary="L = E + A / N^alpha + B / D^beta by Huber loss on the logarithm, with bootstrap intervals and flags.",
    reference="arXiv:2203.15556, arXiv:2404.10102",
    revision=2,  # predictions hold rollout errors; cells are resampled
)
