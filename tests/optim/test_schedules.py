"""Schedules and rate rules as functions: bounds, shape, ends."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from feebcore.model.build import choose
from feebcore.train.rates import TrainShape

NAMES = ["constant", "linear", "cosine", "wsd"]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(NAMES), total=st.integers(1, 400), warmup=st.integers(0, 50), final=st.floats(0, 1))
def test_every_schedule_rises_then_never_rises_again(name, total, warmup, final):
    options = {} if name == "constant" else {"final_fraction": final}
    multiplier = choose("schedules", {"name": name, "warmup_steps": warmup} | options).build(total)
    values = [multiplier(step) for step in range(total)]
    assert all(0 < v <= 1 for v in values) or final == 0
    assert all(0 <= v <= 1 for v in values)
    rise = min(warmup, total)
    assert values[:rise] == sorted(values[:rise])
    falling = values[max(0, rise - 1) :] if warmup <= total else []
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))
    assert [multiplier(step) for step in reversed(range(total))] == values[::-1]  # a function of the step alone


def test_warmup_reaches_the_full_rate_at_its_last_step():
    multiplier = choose("schedules", {"name": "cosine", "warmup_steps": 10}).build(100)
    assert [multiplier(s) for s in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_cosine_is_half_way_down_in_the_middle_and_ends_at_the_final_fraction():
    multiplier = choose("schedules", {"name": "cosine", "warmup_steps": 20, "final_fraction": 0.1}).build(120)
    assert multiplier(70) == pytest.approx(0.1 + 0.9 / 2)
    assert multiplier(45) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert multiplier(120) == pytest.approx(0.1)


def test_wsd_is_flat_until_its_decay():
    multiplier = choose("schedules", {"name": "wsd", "warmup_fraction": 0.1, "decay_fraction": 0.4}).build(100)
    assert {multiplier(s) for s in range(10, 61)} == {1.0}
    assert multiplier(80) == pytest.approx(0.5)
    assert 0 < multiplier(99) < 0.03
    sqrt = choose("schedules", {"name": "wsd", "decay_fraction": 0.4, "shape": "one_minus_sqrt"}).build(100)
    assert sqrt(70) == pytest.approx(1 - math.sqrt(0.25))


def test_linear_and_constant():
    assert choose("schedules", "linear").build(10)(5) == pytest.approx(0.5)
    assert choose("schedules", "constant").build(10)(9) == 1.0


def test_a_warmup_longer_than_the_run_is_a_problem_and_fractions_are_bounded():
    assert choose("schedules", {"name": "wsd", "warmup_steps": 30}).config.check_run(20)
    assert not choose("schedules", {"name": "wsd", "warmup_steps": 20}).config.check_run(20)
    with pytest.raises(ValidationError, match="decay_fraction"):
        choose("schedules", {"name": "wsd", "decay_fraction": 1.5})


def test_inverse_width_halves_matrix_rates_at_double_width_and_keeps_the_embeddings():
    rule = choose("rate_rules", {"name": "inverse_width", "reference_width": 128}).build()
    scale = rule(TrainShape(d_model=256, num_layers=4, batch_tokens=4096, steps=100))
    assert (scale.of("matrix"), scale.of("head"), scale.of("embedding"), scale.of("vector")) == (0.5, 0.5, 1.0, 1.0)
    assert rule(TrainShape(0, 0, 1, 1)).of("matrix") == 1.0
