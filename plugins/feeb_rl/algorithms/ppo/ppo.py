"""Clipped policy gradient with a critic (arXiv:1707.06347)."""

from __future__ import annotations

import torch

from feeb_rl.algorithms.policy_gradient import PolicyGradient
from feebcore.rl import advantages, losses
from feebcore.rl.rollouts import Experience, LossTerms, Prediction


class Ppo(PolicyGradient):
    """A value head on the policy's trunk, GAE, and the clipped value loss."""

    uses_values = True

    def prepare(self, experience: Experience, controller_state: dict[str, float]) -> dict[str, float]:
        assert experience.values is not None
        mask, lengths = experience.mask, experience.lengths
        scored = ~experience.rewards.isnan()
        rewards = advantages.token_rewards(experience.rewards.nan_to_num(0.0), lengths, mask.shape[1], self._kl_in_reward(experience, controller_state))
        bootstrap = experience.truncated if self.config.truncation == "bootstrap" else None
        estimates, returns = advantages.gae(rewards, experience.values, lengths, self.config.gamma, self.config.lam, bootstrap)
        usable = mask & scored[:, None]  # a rollout that could not be scored trains neither policy nor critic
        estimates = advantages.whiten(estimates, usable) if self.config.whiten else estimates
        experience.advantages = torch.where(usable, estimates, 0.0)
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
