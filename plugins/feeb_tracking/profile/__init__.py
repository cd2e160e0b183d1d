"""A torch profiler trace."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class ProfileConfig(PartConfig):
    start: int = Field(10, ge=1, description="steps of this process before the profile, to leave out compilation and warmup")
    steps: int = Field(3, ge=1, description="number of steps to profile")
    memory: bool = Field(False, description="also record allocations")


PART = feeb.CallbackSpec(
    "profile",
    ProfileConfig,
    build=f"{__name__}.profile:Profile",
    since="1.1",
    summary="torch.profiler trace and operator table of a few steps, in profile/.",
    reference="https://docs.pytorch.org/docs/stable/profiler.html",
)
