"""How often a comparison is wrong, and how often it finds what is there, over hundreds of them."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from feebcore.compare.statistics import differences_of, paired, power_of, seeds_needed
from feebcore.compare.verdict import judge

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import comparisons, train

NUMBER, MOST_FALSE = 200, 18  # at the 5 % level 10 are expected; more than 18 would come in one of 200 such tests


def kinds(losses: np.ndarray, effect: float) -> list[list[str]]:
    """The verdict on every variant of every comparison; the first side is the baseline."""
    found = []
    for sides in losses:
        variants = {f"v{i}": list(row) for i, row in enumerate(sides[1:])}
        found.append([judge(d, "base", effect).kind for d in differences_of(list(sides[0]), variants)])
    return found


def different(kind: str) -> bool:
    return kind in ("better", "worse")


def test_a_recipe_is_seldom_called_different_from_itself():
    false = sum(different(kind) for (kind,) in kinds(comparisons(NUMBER, 2, 5), effect=0.01))
    assert 1 <= false <= MOST_FALSE


def test_of_three_variants_that_are_all_the_baseline_one_is_seldom_called_different():
    false = sum(any(map(different, row)) for row in kinds(comparisons(NUMBER, 4, 5, first_seed=10_000), effect=0.01))
    assert 1 <= false <= MOST_FALSE


def test_a_planted_effect_is_found_as_often_as_the_power_says():
    scatter = math.sqrt(2) * float(train(np.arange(50_000, 51_000)).std())
    effect = 1.5 * scatter
    seeds = seeds_needed(effect, scatter)
    assert seeds is not None
    losses = comparisons(NUMBER, 2, seeds, first_seed=100_000)
    losses[:, 1] -= effect
    found = sum(kind == "better" for (kind,) in kinds(losses, effect))
    stated = power_of(effect, scatter, seeds)
    assert stated >= 0.8
    assert found / NUMBER >= stated - 2.6 * math.sqrt(stated * (1 - stated) / NUMBER)
    assert found < NUMBER


def test_no_difference_larger_than_is_true_when_it_is_said():
    """The planted difference is as large as the effect asked for, so that every such sentence about it is near the edge."""
    scatter = math.sqrt(2) * float(train(np.arange(50_000, 51_000)).std())
    losses = comparisons(NUMBER, 2, 8, first_seed=200_000)
    losses[:, 1] += scatter
    called_same = sum(kind == "no difference" for (kind,) in kinds(losses, effect=scatter))
    assert called_same <= MOST_FALSE


def test_intervals_hold_the_true_difference_in_nineteen_of_twenty():
    losses = comparisons(400, 2, 5, first_seed=300_000)
    held = sum(p.low <= 0.3 <= p.high for p in (paired(list(b + 0.3 - a)) for a, b in losses))
    assert 0.92 <= held / 400 <= 0.98


@pytest.mark.parametrize("seed", [0, 7])
def test_the_synthetic_trainer_depends_on_the_seed_alone(seed):
    assert train(np.array([seed, seed + 1]))[0] == train(np.array([seed]))[0]
