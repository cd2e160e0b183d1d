"""Gradient, weight and update norms."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class GradientsConfig(PartConfig):
    every: int = Field(
        100, ge=1, description="measure every N steps, and at the last step (not where a run ends by its loss, as that is known only after the step)"
    )
    updates: bool = Field(True, description="also measure the update of each step, which takes a copy of the weights")


PART = feeb.CallbackSpec(
    "gradients",
    GradientsConfig,
    build=f"{__name__}.gradients:Gradients",
    since="1.1",
    summary="Norms of gradients, weights and updates per layer.",
    reference="arXiv:2309.14322",
)
