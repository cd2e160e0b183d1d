"""Policy, value and KL terms: pure functions on right-padded rows.

Shapes: N rollouts, T completion tokens. Every function takes the `mask` [N,T] of real tokens and reads nothing
outside it: NaN and infinities on padding change neither loss nor gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log ratios are clamped to this before exp, in losses only: metrics are not."""

AGGREGATIONS = ("token_mean", "sequence_mean", "constant")
ESTIMATORS = ("k1", "k2", "k3")


@dataclass(frozen=True)
class PolicyTerms:
    """per_token [N,T]: the loss of each token, 0 on padding. ratio [N,T]: new over old probability, 1 on padding.
    clipped [N,T]: tokens whose gradient the clip removed."""

    per_token: Tensor
    ratio: Tensor
    clipped: Tensor


def log_ratio(log_probs: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """log_probs - other on real tokens, 0 on padding, not clamped."""
    zero = log_probs.new_zeros(())
    return torch.where(mask, log_probs, zero) - torch.where(mask, other, zero)


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyTerms:
    """-min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) (arXiv:1707.06347); with `dual_clip` c > 1 the loss of
    tokens with A < 0 is at most -c A (arXiv:1912.09729). advantages [N,T], constant."""
    ratio = log_ratio(log_probs, old_log_probs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages = torch.where(mask, advantages, 0.0).detach()
    plain = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    loss = torch.maximum(plain, bounded)
    clipped = bounded > plain
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (loss > ceiling)
        loss = torch.where(over, ceiling, loss)
        clipped |= over
    return PolicyTerms(loss, ratio, clipped & mask)


def kl_estimate(log_probs: Tensor, reference: Tensor, mask: Tensor, estimator: str, clamp: bool = True) -> Tensor:
    """Per-token estimate [N,T] of KL(policy || reference) from tokens of the policy (joschu.net/blog/kl-approx.html).

    With d = log p - log q: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. As *values* k1 and k3 are unbiased, k2 is not.
    As *losses* only k2 has the gradient of the KL; k1's is zero on average and k3's is that of KL(reference || policy). In the
    reward (detached) k1 gives the KL's gradient.
    """
    d = log_ratio(log_probs, reference, mask)
    if clamp:
        d = d.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d.square() / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"estimator is one of {', '.join(ESTIMATORS)}, not {estimator!r}")


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None = 0.2) -> Tensor:
    """Per-token 0.5 max((V - R)^2, (clip(V, old ± clip) - R)^2), [N,T], 0 on padding; unclipped with clip None."""
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    error = (values - returns).square()
    if clip is not None:
        error = torch.maximum(error, (old_values + (values - old_values).clamp(-clip, clip) - returns).square())
    return 0.5 * error


@dataclass(frozen=True)
class Totals:
    """Counts over the whole optimizer step, all micro-batches together: what sums are divided by.

    tokens: real completion tokens. sequences: rollouts with at least one. max_completion_tokens: the longest a completion may be.
    """

    tokens: int
    sequences: int
    max_completion_tokens: int


def totals_of(lengths: Tensor, max_completion_tokens: int) -> Totals:
    return Totals(int(lengths.sum()), int((lengths > 0).sum()), max_completion_tokens)


def aggregate(per_token: Tensor, mask: Tensor, mode: str, totals: Totals) -> Tensor:
    """The scalar share of these rows in the step's loss; shares of micro-batches add up to the whole.

    token_mean: every token weighs 1 / tokens (DAPO). sequence_mean: every rollout weighs 1 / sequences, its tokens
    equally (GRPO). constant: every token weighs 1 / (sequences x max_completion_tokens) (Dr.GRPO: no length bias).
    """
    real = torch.where(mask, per_token, 0.0)
    if mode == "token_mean":
        return real.sum() / max(totals.tokens, 1)
    if mode == "sequence_mean":
        return (real.sum(1) / mask.sum(1).clamp(min=1)).sum() / max(totals.sequences, 1)
    if mode == "constant":
        return real.sum() / max(totals.sequences * totals.max_completion_tokens, 1)
    raise ValueError(f"aggregation is one of {', '.join(AGGREGATIONS)}, not {mode!r}")
