"""Built-in reinforcement learning: algorithms ppo and grpo, tasks sort and countdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

import feebcore as feeb


class PolicyConfig(feeb.PartConfig):
    """What every policy-gradient algorithm here shares.

    epochs: passes over the rollouts of a step. minibatches: optimizer steps a pass. clip_low, clip_high: how far the
    probability ratio may leave 1. dual_clip: bound c > 1 of the loss where the advantage is negative.
    kl_coefficient: weight of the KL to the reference (the model that rl began with). kl_estimator and kl_place: k2 or k3
    in the loss, k1, k2 or k3 in the reward; k2 in the loss and k1 in the reward have the KL's own gradient, k3 in the loss
    (DeepSeek's choice) that of the opposite direction. kl_target: adapts the coefficient so that the KL, nats a completion,
    stays near it (Ziegler et al. 2019). entropy_coefficient: bonus. aggregation: token_mean, sequence_mean or constant.
    """

    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1)
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float | None = Field(None, gt=1)
    kl_coefficient: float = Field(0.0, ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_place: Literal["loss", "reward"] = "loss"
    kl_target: float | None = Field(None, gt=0)
    entropy_coefficient: float = Field(0.0, ge=0)
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"

    @model_validator(mode="after")
    def _gradient_exists(self) -> Self:
        if self.kl_place == "loss" and self.kl_estimator == "k1":
            raise ValueError("k1 in the loss has a gradient of zero on average; use kl_estimator k2 or k3, or kl_place: reward")
        if self.kl_target is not None and self.kl_coefficient == 0:
            raise ValueError("kl_target adapts kl_coefficient by factors, so kl_coefficient must start above 0")
        return self


class GrpoConfig(PolicyConfig):
    """advantage: 'std' divides by the group's deviation (GRPO), 'none' does not (Dr.GRPO). eps: added to the deviation."""

    compares_group: ClassVar[bool] = True
    advantage: Literal["std", "none"] = "std"
    eps: float = Field(1e-4, gt=0)


class PpoConfig(PolicyConfig):
    """gamma, lam: discount and GAE decay. value_coefficient, value_clip: of the critic's loss. whiten: advantages to zero
    mean and unit variance over the step. truncation: a completion cut at its limit is the end ('terminal') or goes on
    with the critic's value ('bootstrap').
    """

    epochs: int = Field(2, ge=1)
    minibatches: int = Field(2, ge=1)
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    value_coefficient: float = Field(0.5, ge=0)
    value_clip: float | None = Field(0.2, gt=0)
    whiten: bool = True
    truncation: Literal["terminal", "bootstrap"] = "terminal"


class SortConfig(feeb.PartConfig):
    """digits: how many to sort."""

    digits: int = Field(5, ge=2, le=32)


class CountdownConfig(feeb.PartConfig):
    """numbers: how many, each 1 to 9, every one used once. target: results are below it and at least 0."""

    numbers: int = Field(3, ge=2, le=4)
    target: int = Field(100, ge=10, le=1000)


@feeb.hookimpl
def feeb_algorithms() -> Iterable[feeb.AlgorithmSpec]:
    yield feeb.AlgorithmSpec(
        "grpo", GrpoConfig, build="feeb_rl.algorithms:Grpo", summary="Rewards compared within the group of one prompt.", reference="arXiv:2402.03300"
    )
    yield feeb.AlgorithmSpec(
        "ppo", PpoConfig, build="feeb_rl.algorithms:Ppo", summary="Clipped policy gradient with a value head and GAE.", reference="arXiv:1707.06347"
    )


@feeb.hookimpl
def feeb_tasks() -> Iterable[feeb.TaskSpec]:
    yield feeb.TaskSpec("sort", SortConfig, build="feeb_rl.sort:Sort", summary="Digits in ascending order: 72914= becomes 12479.")
    yield feeb.TaskSpec(
        "countdown", CountdownConfig, build="feeb_rl.countdown:Countdown", summary="A formula that uses each number once and reaches the target."
    )
