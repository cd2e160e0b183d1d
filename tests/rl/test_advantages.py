"""Advantages against formulas written a second time, in numpy or as loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feebcore.rl.advantages import gae, group_advantages, token_rewards, whiten, zero_variance


@pytest.mark.parametrize("group_size", range(2, 9))
def test_grpo_advantages_equal_the_papers_formula(group_size):
    rng = np.random.default_rng(group_size)
    rewards = rng.random((5, group_size)).astype(np.float32)
    rewards[0] = rng.integers(0, 2, group_size)
    rewards[0, :2] = 0, 1
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, ddof=1, keepdims=True) + 1e-4)
    groups = np.repeat(np.arange(5), group_size)
    order = rng.permutation(5 * group_size)  # groups are named, not positional
    found = group_advantages(torch.tensor(rewards.ravel()[order]), torch.tensor(groups[order]))
    np.testing.assert_allclose(found.numpy(), expected.ravel()[order], atol=1e-5)
    plain = group_advantages(torch.tensor(rewards.ravel()), torch.tensor(groups), "none")
    np.testing.assert_allclose(plain.numpy(), (rewards - rewards.mean(1, keepdims=True)).ravel(), atol=1e-6)


def test_leave_one_out_is_the_mean_baseline_times_g_over_g_minus_1():
    rewards = torch.tensor([0.0, 1.0, 0.3, 0.9])
    loo = torch.stack([r - (rewards.sum() - r) / 3 for r in rewards])
    assert torch.allclose(group_advantages(rewards, torch.zeros(4, dtype=torch.int64), "none") * 4 / 3, loo, atol=1e-6)


@pytest.mark.parametrize("normalize", ["std", "none"])
def test_groups_without_variance_or_company_or_score_get_exactly_zero(normalize):
    nan = float("nan")
    rewards = torch.tensor([1.0, 1.0, 0.3, 0.3 + 1e-9, 0.7, nan, nan, 0.2, nan, 0.0, 1.0])
    groups = torch.tensor([0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5])
    found = group_advantages(rewards, groups, normalize)
    assert found[:9].tolist() == [0.0] * 9
    assert found[9] < 0 < found[10]
    assert zero_variance(rewards, groups).tolist() == [True] * 9 + [False] * 2


def test_an_unscored_rollout_counts_in_nothing():
    rewards, groups = torch.tensor([0.0, 1.0, 1.0, float("nan")]), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(group_advantages(rewards, groups)[:3], group_advantages(rewards[:3], groups[:3]))


def loop_gae(rewards, values, gamma, lam, bootstrap):
    """One rollout: lists of length n and n + 1."""
    advantages, running = [0.0] * len(rewards), 0.0
    for t in reversed(range(len(rewards))):
        following = values[t + 1] if t + 1 < len(rewards) or bootstrap else 0.0
        running = rewards[t] + gamma * following - values[t] + gamma * lam * running
        advantages[t] = running
    return advantages


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_on_padded_rows_equals_a_loop_over_ragged_ones(seed, gamma, lam):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, 5)
    rewards, values = rng.normal(size=(5, 6)), rng.normal(size=(5, 7))
    bootstrap = rng.random(5) < 0.5
    padded_rewards, padded_values = torch.full((5, 6), torch.nan), torch.full((5, 7), torch.inf)
    for i, n in enumerate(lengths):
        padded_rewards[i, :n], padded_values[i, : n + bootstrap[i]] = torch.tensor(rewards[i, :n]).float(), torch.tensor(values[i, : n + bootstrap[i]]).float()
    found, returns = gae(padded_rewards, padded_values, torch.tensor(lengths), gamma, lam, torch.tensor(bootstrap))
    for i, n in enumerate(lengths):
        expected = loop_gae(rewards[i, :n], values[i], gamma, lam, bootstrap[i])
        np.testing.assert_allclose(found[i, :n], expected, atol=1e-4)
        np.testing.assert_allclose(returns[i, :n], expected + values[i, :n], atol=1e-4)
        assert not found[i, n:].any()


def test_gae_at_its_ends_is_return_minus_value_and_the_td_error():
    lengths = torch.tensor([4, 2])
    rewards = token_rewards(torch.tensor([1.0, 0.5]), lengths, 4)
    values = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    full, returns = gae(rewards, values, lengths, 1.0, 1.0)
    assert torch.allclose(full[0], 1.0 - values[0, :4])
    assert torch.allclose(full[1, :2], 0.5 - values[1, :2])
    assert torch.allclose(returns[0], torch.ones(4))
    one_step, _ = gae(rewards, values, lengths, 0.9, 0.0)
    assert torch.allclose(one_step[0, :3], 0.9 * values[0, 1:4] - values[0, :3])
    assert torch.allclose(one_step[0, 3], 1.0 - values[0, 3])


def test_the_reward_stands_on_the_last_real_token():
    found = token_rewards(torch.tensor([1.0, 2.0]), torch.tensor([3, 1]), 4, torch.full((2, 4), 0.1))
    assert torch.allclose(found, torch.tensor([[-0.1, -0.1, 0.9, 0.0], [1.9, 0.0, 0.0, 0.0]]))


def test_whitening_sees_real_entries_only_and_can_keep_the_mean():
    values = torch.tensor([[1.0, 2.0, torch.nan], [5.0, torch.inf, 1e9]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    ragged = np.array([1.0, 2.0, 5.0])
    expected = (ragged - ragged.mean()) / ragged.std(ddof=1)
    np.testing.assert_allclose(whiten(values, mask)[mask], expected, rtol=1e-5)
    np.testing.assert_allclose(whiten(values, mask, shift_mean=False)[mask], expected + ragged.mean(), rtol=1e-5)
    assert not whiten(values, mask)[~mask].any()
