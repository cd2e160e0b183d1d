"""Task `countdown`: a formula that reaches a target."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class CountdownConfig(feeb.PartConfig):
    """Size of the problems."""

    numbers: int = Field(3, ge=2, le=4, description="how many numbers, each 1 to 9, every one used once")
    target: int = Field(100, ge=10, le=1000, description="targets are from 0 to below this")


PART = feeb.TaskSpec(
    "countdown", CountdownConfig, build=f"{__name__}.countdown:Countdown", summary="A formula that uses each number once and reaches the target."
)
