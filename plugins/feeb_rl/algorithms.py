"""GRPO and PPO: two ways to advantages, one clipped policy loss.

Shapes: N rollouts, T completion tokens. Everything here is arithmetic on feebcore.rl's pure functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from feebcore.rl import advantages, losses
from feebcore.rl.rollouts import Experience, LossTerms, Prediction

if TYPE_CHECKING:
    from feeb_rl import GrpoConfig, PolicyConfig, PpoConfig


class _PolicyGradient:
    """The clipped loss with its KL and entropy terms; subclasses say what the advantages are."""

    uses_values = False

    def __init__(self, config: PolicyConfig) -> None:
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


class Grpo(_PolicyGradient):
    """Every token of a completion gets its reward relative to the group's."""

    def __init__(self, config: GrpoConfig) -> None:
        super().__init__(config)

    def prepare(self, experience: Experience, controller_state: dict[str, float]) -> dict[str, float]:
        rewards = experience.rewards
        penalty = self._kl_in_reward(experience, controller_state)
        if penalty is not None:
            rewards = rewards - penalty.sum(1)
        scores = advantages.group_advantages(rewards, experience.groups, self.config.advantage, self.config.eps)
        experience.advantages = torch.where(experience.mask, scores[:, None], 0.0)
        return {}


class Ppo(_PolicyGradient):
    """A value head on the policy's trunk, GAE, and the clipped value loss."""

    uses_values = True

    def __init__(self, config: PpoConfig) -> None:
        super().__init__(config)

    def prepare(self, experience: Experience, controller_state: dict[str, float]) -> dict[str, float]:
        assert experience.values is not None
        mask, lengths = experience.mask, experience.lengths
        scored = ~experience.rewards.isnan()
        rewards = advantages.token_rewards(experience.rewards.nan_to_num(0.0), lengths, mask.shape[1], self._kl_in_reward(experience, controller_state))
        bootstrap = experience.truncated if self.config.truncation == "bootstrap" else None
        found, returns = advantages.gae(rewards, experience.values, lengths, self.config.gamma, self.config.lam, bootstrap)
        usable = mask & scored[:, None]  # a rollout that could not be scored teaches neither policy nor critic
        found = advantages.whiten(found, usable) if self.config.whiten else found
        experience.advantages = torch.where(usable, found, 0.0)
        experience.returns = torch.where(usable, returns, experience.values[:, :-1])
        explained = 1 - (returns - experience.values[:, :-1])[usable].var(correction=0) / returns[usable].var(correction=0).clamp(min=1e-8)
        return {"explained_variance": float(explained)}

    def loss(self, prediction: Prediction, experience: Experience, totals: losses.Totals, controller_state: dict[str, float]) -> LossTerms:
        terms = super().loss(prediction, experience, totals, controller_state)
        assert prediction.values is not None
        assert experience.values is not None
        assert experience.returns is not None
        mask = experience.mask
        per_token = losses.value_loss(prediction.values[:, :-1], experience.values[:, :-1], experience.returns, mask, self.config.value_clip)
        terms.loss = terms.loss + self.config.value_coefficient * losses.aggregate(per_token, mask, "token_mean", totals)
        terms.sums["value_loss"] = per_token.detach().double().sum()
        return terms
