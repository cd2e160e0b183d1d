"""The clipped policy loss with its KL and entropy terms: arithmetic on feebcore.rl's pure functions.

Shapes: N rollouts, T completion tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feebcore.protocols import BuildContext
from feebcore.rl import losses
from feebcore.rl.rollouts import Algorithm, Experience, LossTerms, Prediction

if TYPE_CHECKING:
    from feeb_rl.algorithms.policy_config import PolicyConfig


class PolicyGradient(Algorithm):
    """Base of the algorithms here; `prepare` of a subclass computes the advantages."""

    def __init__(self, config: PolicyConfig, context: BuildContext | None = None) -> None:
        self.config: Any = config
        self.epochs, self.minibatches = config.epochs, config.minibatches
        self.uses_reference = config.kl_coefficient > 0

    def initial_controller_state(self) -> dict[str, float]:
        return {"kl_coefficient": self.config.kl_coefficient}

    def adapt(self, controller_state: dict[str, float], metrics: dict[str, Any]) -> None:
        """Ziegler et al. 2019, equation 5, with a gain of 0.1 a step."""
        if self.config.kl_target is not None and metrics.get("kl") is not None:
            error = min(max(metrics["kl"] / self.config.kl_target - 1, -0.2), 0.2)
            controller_state["kl_coefficient"] *= 1 + 0.1 * error

    def _kl_in_reward(self, experience: Experience, controller_state: dict[str, float]) -> Tensor | None:
        """[N,T] penalty on the reward of each token, None without one."""
        if self.config.kl_place != "reward" or controller_state["kl_coefficient"] == 0:
            return None
        assert experience.reference_log_probs is not None
        kl = losses.kl_estimate(experience.log_probs, experience.reference_log_probs, experience.mask, self.config.kl_estimator)
        return controller_state["kl_coefficient"] * kl

    def loss(self, prediction: Prediction, experience: Experience, totals: losses.Totals, controller_state: dict[str, float]) -> LossTerms:
        options, mask = self.config, experience.mask
        assert experience.advantages is not None
        terms = losses.policy_loss(
            prediction.log_probs, experience.log_probs, experience.advantages, mask, options.clip_low, options.clip_high, options.dual_clip
        )
        per_token = terms.per_token
        sums = {"pg_loss": per_token, "clip_fraction": terms.clipped, "entropy": prediction.entropy}
        if options.kl_place == "loss" and controller_state["kl_coefficient"] > 0:
            assert experience.reference_log_probs is not None
            kl = losses.kl_estimate(prediction.log_probs, experience.reference_log_probs, mask, options.kl_estimator)
            per_token = per_token + controller_state["kl_coefficient"] * kl
        if options.entropy_coefficient > 0:
            per_token = per_token - options.entropy_coefficient * prediction.entropy
        loss = losses.aggregate(per_token, mask, options.aggregation, totals)
        return LossTerms(loss, {name: torch.where(mask, value.detach().double(), 0.0).sum() for name, value in sums.items()})
