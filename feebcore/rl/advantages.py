"""From rewards to advantages: pure functions on right-padded rows.

Shapes: N rollouts, T completion tokens (padded; `lengths` [N] says how many are real, the end token included).
Padding may hold anything, NaN included: it is never read.
"""

from __future__ import annotations

import torch
from torch import Tensor


def length_mask(lengths: Tensor, width: int) -> Tensor:
    """[N,T] bool: True on the first lengths[n] positions."""
    return torch.arange(width, device=lengths.device)[None] < lengths[:, None]


def group_statistics(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per rollout: mean, unbiased standard deviation, number of scored members and spread (max - min) of its group.

    rewards [N]; NaN marks a rollout that could not be scored: it counts in nothing. groups [N] int64, any numbers.
    """
    scored = ~rewards.isnan()
    values = rewards.double()
    _, inverse = groups.unique(return_inverse=True)
    num_groups = int(inverse.max()) + 1 if inverse.numel() else 0
    zeros = values.new_zeros(num_groups)
    known = torch.where(scored, values, 0.0)
    count = zeros.index_add(0, inverse, scored.double())
    mean = zeros.index_add(0, inverse, known) / count.clamp(min=1)
    squares = torch.where(scored, (values - mean[inverse]) ** 2, 0.0)
    std = (zeros.index_add(0, inverse, squares) / (count - 1).clamp(min=1)).sqrt()
    high = torch.full_like(zeros, -torch.inf).scatter_reduce(0, inverse, torch.where(scored, values, -torch.inf), "amax")
    low = torch.full_like(zeros, torch.inf).scatter_reduce(0, inverse, torch.where(scored, values, torch.inf), "amin")
    return mean[inverse], std[inverse], count[inverse], (high - low)[inverse]


def zero_variance(rewards: Tensor, groups: Tensor, tolerance: float = 1e-6) -> Tensor:
    """[N] bool: rollouts of groups whose scored rewards are all equal (to `tolerance`), or of one member: nothing to learn."""
    _, _, count, spread = group_statistics(rewards, groups)
    return (count < 2) | (spread <= tolerance)


def group_advantages(rewards: Tensor, groups: Tensor, normalize: str = "std", eps: float = 1e-4) -> Tensor:
    """[N] fp32: (r - mean) / (std + eps) within each group ('std', GRPO, arXiv:2402.03300; unbiased std), or r - mean
    ('none', Dr.GRPO, arXiv:2503.20783). Exactly 0 for groups without variance and for rewards that are NaN."""
    if normalize not in ("std", "none"):
        raise ValueError(f"normalize is 'std' or 'none', not {normalize!r}")
    mean, std, _, _ = group_statistics(rewards, groups)
    centered = rewards.double() - mean
    advantages = centered / (std + eps) if normalize == "std" else centered
    return torch.where(zero_variance(rewards, groups) | rewards.isnan(), 0.0, advantages).float()


def token_rewards(rewards: Tensor, lengths: Tensor, width: int, penalty: Tensor | None = None) -> Tensor:
    """[N,T]: the rollout's reward on its last real token, less `penalty` [N,T] (a KL term) on every real token."""
    mask = length_mask(lengths, width)
    last = torch.arange(width, device=lengths.device)[None] == (lengths - 1)[:, None]
    result = torch.where(last, rewards[:, None].float(), 0.0)
    return result if penalty is None else result - torch.where(mask, penalty, 0.0)


def gae(rewards: Tensor, values: Tensor, lengths: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimates and returns, both [N,T], 0 on padding (arXiv:1506.02438).

    rewards [N,T]; values [N,T+1]: values[n,t] is V of the state before token t, values[n,lengths[n]] that after the
    last one, which is used only where `bootstrap` [N] is True (a truncated rollout whose value goes on); elsewhere the
    end is terminal and worth 0. returns = advantages + values.
    """
    num_rows, width = rewards.shape
    mask = length_mask(lengths, width)
    rewards = torch.where(mask, rewards.float(), 0.0)
    states = length_mask(lengths + (0 if bootstrap is None else bootstrap.long()), width + 1)
    values = torch.where(states, values.float(), 0.0)
    delta = torch.where(mask, rewards + gamma * values[:, 1:] - values[:, :-1], 0.0)
    advantages = torch.zeros_like(rewards)
    running = rewards.new_zeros(num_rows)
    for t in range(width - 1, -1, -1):
        running = torch.where(mask[:, t], delta[:, t] + gamma * lam * running, 0.0)
        advantages[:, t] = running
    return advantages, torch.where(mask, advantages + values[:, :-1], 0.0)


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True, eps: float = 1e-8) -> Tensor:
    """Unit variance (and zero mean, with shift_mean) over the masked entries only; 0 elsewhere."""
    real = values[mask].double()
    if real.numel() < 2:
        return torch.where(mask, values, 0.0)
    mean, variance = real.mean(), real.var()
    scaled = (values.double() - mean) * torch.rsqrt(variance + eps)
    return torch.where(mask, (scaled if shift_mean else scaled + mean).to(values.dtype), 0.0)
