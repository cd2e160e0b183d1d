"""Processors and samplers: what they keep, in which order they run."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from feebcore.generate.decoding import PerRowRNG, row_seeds
from feebcore.parts import resolve_part

PROBS = [0.5, 0.2, 0.15, 0.1, 0.05]
LOGITS = torch.tensor([PROBS]).log()


def processor(name, **options):
    return resolve_part("logits_processors", {"name": name, **options}).build()


def kept(logits):
    return set((logits[0] > -torch.inf).nonzero()[:, 0].tolist())


@pytest.mark.parametrize(
    ("p", "tokens"), [(0.4, {0}), (0.51, {0, 1}), (0.71, {0, 1, 2}), (0.69, {0, 1}), (0.86, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3, 4}), (0.01, {0})]
)
def test_top_p_keeps_the_token_that_crosses(p, tokens):
    assert kept(processor("top_p", p=p)(LOGITS)) == tokens


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9, 0.999]), st.sampled_from([0.0, 0.5, 2.0]), st.sampled_from([1, 4, 1000]))
def test_top_p_keeps_what_a_stable_sort_puts_first(seed, p, spread, steps):
    """Also among equals (logits in few steps) and removed tokens."""
    logits = (torch.randn(5, 40, generator=torch.Generator().manual_seed(seed)) * spread * steps).round() / steps
    logits[:, 1:][logits[:, 1:] < -spread] = -torch.inf
    ordered, tokens = logits.sort(dim=-1, descending=True, stable=True)
    probs = ordered.softmax(-1, dtype=torch.float64)
    before = probs.cumsum(-1) - probs
    before[:, 0] = 0.0
    expected = torch.full_like(logits, -torch.inf).scatter(-1, tokens, ordered.masked_fill(before >= p, -torch.inf))
    assert torch.equal(processor("top_p", p=p)(logits), expected)


def test_top_k_keeps_exactly_k_even_among_equals():
    assert kept(processor("top_k", k=2)(LOGITS)) == {0, 1}
    assert len(kept(processor("top_k", k=3)(torch.zeros(1, 8)))) == 3
    assert torch.equal(processor("top_k", k=50)(LOGITS), LOGITS)


def test_min_p_keeps_what_is_at_least_its_share_of_the_best():
    assert kept(processor("min_p", min_p=0.25)(LOGITS)) == {0, 1, 2}
    assert kept(processor("min_p", min_p=1.0)(torch.tensor([[1.0, 2.0, 2.0]]))) == {1, 2}
    assert torch.equal(processor("min_p", min_p=0.0)(LOGITS), LOGITS)


def test_temperature_divides_logits():
    assert torch.equal(processor("temperature", temperature=0.5)(LOGITS), LOGITS * 2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=6, max_size=6), min_size=1, max_size=4),
    st.sampled_from([("top_k", {"k": 1}), ("top_p", {"p": 1e-6}), ("top_p", {"p": 0.9}), ("min_p", {"min_p": 1.0}), ("min_p", {"min_p": 0.1})]),
)
def test_at_least_one_token_stays_and_kept_logits_are_untouched(rows, chosen):
    logits = torch.tensor(rows)
    name, options = chosen
    result = processor(name, **options)(logits)
    stay = result > -torch.inf
    assert stay.any(-1).all()
    assert torch.equal(result[stay], logits[stay])
    assert stay.gather(-1, logits.argmax(-1, keepdim=True)).all() or (logits == logits.amax(-1, keepdim=True)).sum() > len(rows)
    alone = torch.cat([processor(name, **options)(row[None]) for row in logits])
    assert torch.equal(alone, result)  # row by row


def test_processors_run_in_the_order_of_the_list():
    hot, nucleus = processor("temperature", temperature=2.0), processor("top_p", p=0.69)
    assert kept(nucleus(hot(LOGITS))) != kept(hot(nucleus(LOGITS)))


def test_only_temperature_is_declared_to_keep_every_token():
    names = ["temperature", "top_k", "top_p", "min_p"]
    assert [getattr(resolve_part("logits_processors", n).config, "truncates", True) for n in names] == [False, True, True, True]


def test_greedy_takes_the_best_and_sampling_the_distribution():
    random = PerRowRNG(row_seeds(0, range(4000)))
    assert resolve_part("samplers", "greedy").build()(LOGITS, random).tolist() == [0]
    drawn = resolve_part("samplers", "sampling").build()(LOGITS.expand(4000, -1), random)
    shares = torch.bincount(drawn, minlength=5) / 4000
    for share, p in zip(shares.tolist(), PROBS, strict=True):
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 4000)
