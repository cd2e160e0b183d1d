"""Schedules as functions: bounds, shape, ends."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feebcore.parts import resolve_part

NAMES = ["constant", "linear", "cosine", "wsd", "one_minus_sqrt", "exponential", "inverse_sqrt", "power"]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), total=st.integers(1, 400), warmup=st.integers(0, 50), final=st.floats(0, 1))
def test_every_schedule_rises_then_never_rises_again(name, total, warmup, final):
    options = {} if name in ("constant", "inverse_sqrt") else {"final_fraction": max(final, 0.01) if name == "exponential" else final}
    multiplier = resolve_part("schedules", {"name": name, "warmup_steps": warmup} | options).build(total_steps=total)
    values = [multiplier(step) for step in range(total)]
    assert all(0 < v <= 1 for v in values) or final == 0
    assert all(0 <= v <= 1 for v in values)
    rise = min(warmup, total)
    assert values[:rise] == sorted(values[:rise])
    falling = values[max(0, rise - 1) :] if warmup <= total else []
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert [multiplier(step) for step in reversed(range(total))] == values[::-1]  # a function of the step alone


def test_warmup_reaches_the_full_rate_at_its_last_step():
    multiplier = resolve_part("schedules", {"name": "cosine", "warmup_steps": 10}).build(total_steps=100)
    assert [multiplier(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_the_final_fraction():
    multiplier = resolve_part("schedules", {"name": "cosine", "warmup_steps": 20, "final_fraction": 0.1}).build(total_steps=120)
    assert multiplier(70) == pytest.approx(0.1 + 0.9 / 2)
    assert multiplier(45) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert multiplier(120) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay():
    multiplier = resolve_part("schedules", {"name": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.4}).build(total_steps=100)
    assert {multiplier(s) for s in range(10, 61)} == {1.0}
    assert multiplier(80) == pytest.approx(0.5)
    assert 0 < multiplier(99) < 0.03
    sqrt = resolve_part("schedules", {"name": "wsd", "decay_fraction": 0.4, "shape": "one_minus_sqrt"}).build(total_steps=100)
    assert sqrt(70) == pytest.approx(1 - math.sqrt(0.25))


def test_linear_and_constant():
    assert resolve_part("schedules", "linear").build(total_steps=10)(5) == pytest.approx(0.5)
    assert resolve_part("schedules", "constant").build(total_steps=10)(9) == 1.0


def test_a_warmup_longer_than_the_run_is_a_problem_and_fractions_are_bounded():
    assert resolve_part("schedules", {"name": "wsd", "warmup_steps": 30}).config.check_run(20)
    assert not resolve_part("schedules", {"name": "wsd", "warmup_steps": 16}).config.check_run(20)
    assert "4 of decay" in resolve_part("schedules", {"name": "wsd", "warmup_steps": 17}).config.check_run(20)[0]
    with pytest.raises(ValidationError, match="decay_fraction"):
        resolve_part("schedules", {"name": "wsd", "decay_fraction": 1.5})


# --- closed forms and torch's own --------------------------------------------------------------------------------


def rates(total, **part):
    multiplier = resolve_part("schedules", part).build(total_steps=total)
    return [multiplier(step) for step in range(total + 1)]


def by_torch(make_scheduler, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make_scheduler(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def warmed(scheduler, warmup):
    """torch's way to the same warmup: (step + 1) / warmup, then the other from its beginning."""
    from torch.optim.lr_scheduler import LinearLR, SequentialLR

    def make(optimizer):
        rise = LinearLR(optimizer, 1 / warmup, 1.0, warmup - 1)
        return SequentialLR(optimizer, [rise, scheduler(optimizer)], [warmup])

    return make


@pytest.mark.parametrize(
    ("part", "scheduler"),
    [
        ({"name": "linear", "final_fraction": 0.2}, lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 80)),
        ({"name": "cosine", "final_fraction": 0.1}, lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 80, 0.1)),
        ({"name": "exponential", "final_fraction": 0.03}, lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.03 ** (1 / 80))),
        ({"name": "one_minus_sqrt", "final_fraction": 0.3}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: 1 - 0.7 * math.sqrt(s / 80))),
        ({"name": "inverse_sqrt"}, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: math.sqrt(20 / (20 + s)))),
        ({"name": "constant"}, lambda o: torch.optim.lr_scheduler.ConstantLR(o, 1.0)),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_schedule_is_torchs_after_torchs_warmup(part, scheduler):
    assert rates(100, warmup_steps=20, **part)[:100] == pytest.approx(by_torch(warmed(scheduler, 20), 100), abs=1e-9)


def test_inverse_sqrt_is_that_of_the_transformer_paper():
    found = rates(5000, name="inverse_sqrt", warmup_steps=400)
    paper = [min(n**-0.5, n * 400**-1.5) * 400**0.5 for n in range(1, 5002)]  # equation 3, steps counted from 1
    assert found[:400] == pytest.approx(paper[:400])
    assert found[401:] == pytest.approx(paper[400:-1])  # one step later: the peak is held for one step more, as in all schedules here


def test_wsd_s_returns_to_the_full_rate_and_its_inverse_falls_harmonically():
    found = rates(400, name="wsd_s", warmup_steps=10, ends=[0.25, 0.5, 1.0], decay_fraction=0.2, final_fraction=0.1)
    assert [found[s] for s in (10, 79, 80, 100, 159, 160, 200, 319, 320)] == [1.0] * 9
    assert found[90] == pytest.approx(1 / (0.5 * 10 + 0.5))  # half of 20 steps: half way between 1 / 0.1 and 1
    assert found[180] == pytest.approx(1 / (0.5 * 10 + 0.5))
    assert found[99] == pytest.approx(1 / (19 / 20 * 10 + 1 / 20))
    assert found[400] == pytest.approx(0.1)
    linear = rates(400, name="wsd_s", ends=[0.5, 1.0], decay_fraction=0.1, final_fraction=0.2, shape="linear")
    assert (linear[190], linear[200], linear[380]) == pytest.approx((0.6, 1.0, 0.6))


def test_wsd_s_up_to_an_end_is_the_wsd_of_a_run_that_long():
    """What a re-annealed run is for: its checkpoints stand for runs of their own."""
    shared = {"warmup_steps": 5, "final_fraction": 0.1, "shape": "linear", "decay_fraction": 0.2}
    assert rates(400, name="wsd_s", ends=[0.3, 1.0], **shared)[:120] == pytest.approx(rates(120, name="wsd", **shared)[:120])


def test_power_is_the_same_power_of_the_step_whatever_the_length_of_the_run():
    options = {"name": "power", "exponent": 0.51, "warmup_steps": 10, "onset_steps": 40, "decay_fraction": 0.1}
    short, long = rates(500, **options), rates(5000, **options)
    assert short[:450] == long[:450]
    assert short[39] == 1.0
    assert short[400] / short[100] == pytest.approx(4**-0.51)
    assert short[475] == pytest.approx((475 / 40) ** -0.51 / 2)


def test_a_sequence_runs_each_piece_from_its_own_beginning():
    pieces = [
        {"schedule": {"name": "constant", "warmup_steps": 10}, "steps": 30},
        {"schedule": {"name": "wsd", "decay_fraction": 0.5}, "fraction": 0.5, "scale": 0.5},
        {"schedule": "linear", "scale": 0.25},
    ]
    found = rates(100, name="sequential", pieces=pieces)
    assert found[:30] == rates(30, name="constant", warmup_steps=10)[:30]
    assert found[30:80] == [0.5 * r for r in rates(50, name="wsd", decay_fraction=0.5)[:50]]
    assert found[80:100] == [0.25 * r for r in rates(20, name="linear")[:20]]
    nested = rates(100, name="sequential", pieces=[{"schedule": {"name": "sequential", "pieces": pieces}}])
    assert nested == found


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 300), shares=st.lists(st.integers(1, 10), min_size=1, max_size=5))
def test_a_sequence_by_shares_fills_the_run_exactly(total, shares):
    pieces = [{"schedule": "constant", "fraction": s / sum(shares)} for s in shares]
    config = resolve_part("schedules", {"name": "sequential", "pieces": pieces}).config
    assert sum(config.lengths(total)) == total
    assert min(config.lengths(total)) >= 0
    assert not config.check_run(total)


def test_mistakes_in_schedules_are_named():
    with pytest.raises(ValidationError, match="must ascend"):
        resolve_part("schedules", {"name": "wsd_s", "ends": [0.5, 0.25, 1.0]})
    with pytest.raises(ValidationError, match="more than 1"):
        resolve_part("schedules", {"name": "sequential", "pieces": [{"fraction": 0.7}, {"fraction": 0.7}]})
    with pytest.raises(ValidationError, match="only one may go without"):
        resolve_part("schedules", {"name": "sequential", "pieces": [{"schedule": "linear"}, {"schedule": "cosine"}]})
    long = resolve_part(
        "schedules", {"name": "sequential", "pieces": [{"schedule": {"name": "cosine", "warmup_steps": 50}, "steps": 40}, {"steps": 90}]}
    ).config
    (inner, outer) = long.check_run(100)
    assert inner.startswith("pieces.0.warmup_steps: 50")
    assert "130 steps, more than max_steps 100" in outer
