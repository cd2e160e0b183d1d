"""Options that every policy-gradient algorithm here shares."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

import feebcore as feeb


class PolicyConfig(feeb.AlgorithmConfig):
    """The clipped policy loss, with its KL and entropy terms.

    kl_estimator and kl_place: k2 in the loss and k1 in the reward have the gradient of the KL itself, k3 in the loss (DeepSeek's
    choice) that of the opposite direction.
    """

    epochs: int = Field(1, ge=1, description="passes over the rollouts of a step")
    minibatches: int = Field(1, ge=1, description="optimizer steps per pass over the rollouts")
    clip_low: float = Field(0.2, gt=0, lt=1, description="lower clip range of the probability ratio: 1 - clip_low")
    clip_high: float = Field(0.2, gt=0, description="upper clip range of the probability ratio: 1 + clip_high")
    dual_clip: float | None = Field(None, gt=1, description="bound c > 1 of the loss where the advantage is negative; null: none")
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the KL to the reference policy, the model that rl began with")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="per-token KL estimate; k1 in the reward only")
    kl_place: Literal["loss", "reward"] = Field("loss", description="whether the KL term is added to the loss or subtracted from the reward")
    kl_target: float | None = Field(None, gt=0, description="adapts kl_coefficient so that the KL, in nats per completion, stays near it; null: fixed")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="how the per-token loss is averaged: over tokens (DAPO), per sequence first (GRPO), or by a constant (Dr. GRPO)"
    )

    @model_validator(mode="after")
    def _gradient_exists(self) -> Self:
        if self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ValueError("k1 in the loss has a gradient of zero on average; use kl_estimator k2 or k3, or kl_place: reward")
        if self.kl_target is not None and self.kl_coefficient == 0:
            raise ValueError("kl_target adapts kl_coefficient by factors, so kl_coefficient must start above 0")
        return self
