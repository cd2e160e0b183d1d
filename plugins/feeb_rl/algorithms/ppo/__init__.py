"""Algorithm `ppo`: proximal policy optimization."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb
from feeb_rl.algorithms.policy_config import PolicyConfig


class PpoConfig(PolicyConfig):
    """The critic and generalized advantage estimation."""

    epochs: int = Field(2, ge=1, description="passes over the rollouts of a step")
    minibatches: int = Field(2, ge=1, description="optimizer steps per pass over the rollouts")
    gamma: float = Field(1.0, gt=0, le=1, description="discount factor")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalized advantage estimation")
    value_coefficient: float = Field(0.5, ge=0, description="weight of the value loss")
    value_clip: float | None = Field(0.2, gt=0, description="clip range of the value; null: not clipped")
    whiten: bool = Field(True, description="advantages to zero mean and unit variance over the step")
    truncation: Literal["terminal", "bootstrap"] = Field(
        "terminal", description="a truncated completion counts as finished ('terminal'), or its return is bootstrapped with the critic's value ('bootstrap')"
    )


PART = feeb.AlgorithmSpec(
    "ppo", PpoConfig, build=f"{__name__}.ppo:Ppo", summary="Clipped policy gradient with a value head and GAE.", reference="arXiv:1707.06347"
)
