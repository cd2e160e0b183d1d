"""Group relative advantages (arXiv:2402.03300)."""

from __future__ import annotations

import torch

from feeb_rl.algorithms.policy_gradient import PolicyGradient
from feebcore.rl import advantages
from feebcore.rl.rollouts import Experience


class Grpo(PolicyGradient):
    """Every token of a completion gets its reward relative to the group's."""

    def prepare(self, experience: Experience, controller_state: dict[str, float]) -> dict[str, float]:
        rewards = experience.rewards
        penalty = self._kl_in_reward(experience, controller_state)
        if penalty is not None:
            rewards = rewards - penalty.sum(1)
        scores = advantages.group_advantages(rewards, experience.groups, self.config.advantage, self.config.eps)
        experience.advantages = torch.where(experience.mask, scores[:, None], 0.0)
        return {}
