"""Losses against enumeration, tables and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from feebcore.rl.losses import AGGREGATIONS, Totals, aggregate, kl_estimate, policy_loss, totals_of, value_loss

P_LOGITS, Q_LOGITS = [0.3, -0.5, 1.1], [0.0, 0.4, -0.6]


def one(values):
    return torch.tensor([values], dtype=torch.float64)


def enumerate_estimates(estimator, sampling=None):
    """Expectation and gradient with respect to the policy's logits of an estimator, over all tokens of a 3-token policy."""
    logits = torch.tensor(P_LOGITS, dtype=torch.float64, requires_grad=True)
    log_p = logits.log_softmax(-1)
    log_q = torch.tensor(Q_LOGITS, dtype=torch.float64).log_softmax(-1)
    weights = (log_p if sampling is None else sampling).detach().exp()
    mask = torch.ones(1, 1, dtype=torch.bool)
    value = sum(weights[v] * kl_estimate(log_p[v].view(1, 1), log_q[v].view(1, 1), mask, estimator)[0, 0] for v in range(3))
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


def exact_kl(forward=True):
    logits = torch.tensor(P_LOGITS, dtype=torch.float64, requires_grad=True)
    log_p, log_q = logits.log_softmax(-1), torch.tensor(Q_LOGITS, dtype=torch.float64).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum() if forward else (log_q.exp() * (log_q - log_p)).sum()
    (gradient,) = torch.autograd.grad(kl, logits)
    return kl.item(), gradient


@pytest.mark.parametrize(("estimator", "unbiased"), [("k1", True), ("k2", False), ("k3", True)])
def test_kl_estimators_have_the_expectation_that_their_docs_say(estimator, unbiased):
    assert (abs(enumerate_estimates(estimator)[0] - exact_kl()[0]) < 1e-12) == unbiased


def test_kl_estimators_in_the_loss_have_the_gradients_that_their_docs_say():
    _, kl_gradient = exact_kl()
    assert torch.allclose(enumerate_estimates("k2")[1], kl_gradient)
    assert torch.allclose(enumerate_estimates("k1")[1], torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert not torch.allclose(enumerate_estimates("k3")[1], kl_gradient, atol=1e-3)
    assert torch.allclose(enumerate_estimates("k3")[1], exact_kl(forward=False)[1])


def test_k1_in_the_reward_has_the_gradient_of_the_kl():
    logits = torch.tensor(P_LOGITS, dtype=torch.float64, requires_grad=True)
    log_p, log_q = logits.log_softmax(-1), torch.tensor(Q_LOGITS, dtype=torch.float64).log_softmax(-1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = 0.0
    for v in range(3):  # reward -k1, REINFORCE weighted by the probability of the token
        penalty = kl_estimate(log_p[v].view(1, 1), log_q[v].view(1, 1), mask, "k1").detach()
        loss = loss + log_p[v].exp().detach() * policy_loss(log_p[v].view(1, 1), log_p[v].detach().view(1, 1), -penalty, mask).per_token[0, 0]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, exact_kl()[1])


def test_k3_off_policy_is_biased_without_importance_weights():
    other = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).log_softmax(-1)
    assert abs(enumerate_estimates("k3", other)[0] - exact_kl()[0]) > 1e-2


def test_k3_is_never_negative_and_metrics_are_not_clamped():
    far, near = one([-60.0, -1e-9]), one([-1.0, 0.0])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert (kl_estimate(far, near, mask, "k3") >= 0).all()
    assert kl_estimate(far, near, mask, "k3", clamp=False)[0, 0] > 1e25
    assert kl_estimate(far, near, mask, "k3")[0, 0] < 1e9


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient_flows"),
    [
        (1.0, 1.0, -1.0, True),
        (1.5, 1.0, -1.2, False),  # clipped above
        (0.5, 1.0, -0.5, True),  # below, but the plain objective is the smaller one
        (0.5, -1.0, 0.8, False),  # clipped below
        (1.5, -1.0, 1.5, True),
        (2.9, -1.0, 2.9, True),
        (3.5, -1.0, 3.0, False),  # dual clip at c = 3, only where the advantage is negative
        (3.5, 1.0, -1.2, False),
    ],
)
def test_clipping_table(ratio, advantage, loss, gradient_flows):
    new = one([math.log(ratio)]).requires_grad_()
    terms = policy_loss(new, one([0.0]), one([advantage]), torch.ones(1, 1, dtype=torch.bool), 0.2, 0.2, dual_clip=3.0)
    assert terms.per_token.item() == pytest.approx(loss)
    terms.per_token.sum().backward()
    assert (new.grad.abs().item() > 1e-9) == gradient_flows
    assert terms.clipped.item() != gradient_flows


def test_clip_bounds_can_differ():
    mask = torch.ones(1, 2, dtype=torch.bool)
    terms = policy_loss(one([math.log(1.25), math.log(0.75)]), one([0.0, 0.0]), one([1.0, -1.0]), mask, 0.2, 0.28)
    assert terms.per_token[0].tolist() == pytest.approx([-1.25, 0.8])


def test_without_dual_clip_a_negative_advantage_is_unbounded():
    terms = policy_loss(one([math.log(9.0)]), one([0.0]), one([-1.0]), torch.ones(1, 1, dtype=torch.bool))
    assert terms.per_token.item() == pytest.approx(9.0)


def test_value_loss_takes_the_worse_of_clipped_and_plain():
    mask = torch.tensor([[True, True, False]])
    values, old, returns = one([1.0, 1.0, math.nan]), one([0.0, 0.9, math.inf]), one([2.0, 1.5, math.nan])
    assert value_loss(values, old, returns, mask, 0.2)[0].tolist() == pytest.approx([0.5 * 1.8**2, 0.5 * 0.25, 0.0])
    assert value_loss(values, old, returns, mask, None)[0].tolist() == pytest.approx([0.5, 0.125, 0.0])


def test_token_weights_of_each_aggregation():
    """Two completions of 2 and 20 tokens: what one token weighs (Dr. GRPO's length bias, in closed form)."""
    lengths = torch.tensor([2, 20])
    mask = torch.arange(20)[None] < lengths[:, None]
    expected = {"token_mean": (1 / 22, 1 / 22), "sequence_mean": (1 / 4, 1 / 40), "constant": (1 / 64, 1 / 64)}
    assert set(expected) == set(AGGREGATIONS)
    for mode, (short, long) in expected.items():
        per_token = torch.ones(2, 20, requires_grad=True)
        aggregate(per_token, mask, mode, totals_of(lengths, max_completion_tokens=32)).backward()
        assert per_token.grad[0, 0].item() == pytest.approx(short)
        assert per_token.grad[1, 19].item() == pytest.approx(long)
        assert not per_token.grad[0, 2:].any()


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_shares_of_micro_batches_add_up_and_an_empty_row_counts_in_nothing(mode):
    rng = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5, 2, 0, 4])
    mask = torch.arange(5)[None] < lengths[:, None]
    values = torch.randn(6, 5, generator=rng)
    totals = totals_of(lengths, 8)
    assert totals == Totals(tokens=15, sequences=5, max_completion_tokens=8)
    whole = aggregate(values, mask, mode, totals)
    for size in (1, 2, 4):
        assert sum(aggregate(values[i : i + size], mask[i : i + size], mode, totals) for i in range(0, 6, size)).item() == pytest.approx(whole.item(), abs=1e-6)
    ragged = [values[i, : lengths[i]].double().numpy() for i in range(6) if lengths[i]]
    reference = {
        "token_mean": np.concatenate(ragged).mean(),
        "sequence_mean": np.mean([r.mean() for r in ragged]),
        "constant": np.concatenate(ragged).sum() / 40,
    }
    assert whole.item() == pytest.approx(reference[mode], abs=1e-6)
