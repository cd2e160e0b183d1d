"""Algorithm `grpo`: group relative policy optimization."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

import feebcore as feeb
from feeb_rl.algorithms.policy_config import PolicyConfig


class GrpoConfig(PolicyConfig):
    """Group relative advantages."""

    compares_group: ClassVar[bool] = True

    advantage: Literal["std", "none"] = Field("std", description="'std' divides by the group's standard deviation (GRPO), 'none' does not (Dr. GRPO)")
    eps: float = Field(1e-4, gt=0, description="added to the standard deviation")


PART = feeb.AlgorithmSpec(
    "grpo",
    GrpoConfig,
    build=f"{__name__}.grpo:Grpo",
    summary="GRPO: policy gradient with group-relative advantages (reward minus the mean over the completions of a prompt); options for DAPO and Dr. GRPO.",
    reference="arXiv:2402.03300",
)
