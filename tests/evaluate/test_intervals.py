from __future__ import annotations

import numpy as np
import pytest

from feebcore.evaluate.intervals import bootstrap, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_published_intervals(successes: int, n: int, low: float, high: float) -> None:
    """Newcombe 1998, Table I, method 3."""
    found = wilson(successes, n)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    assert found.value == successes / n


def test_wilson_of_nothing_says_nothing_and_refuses_nonsense() -> None:
    assert wilson(0, 0)[1:] == (0.0, 1.0, 0)
    assert wilson(7, 7).high == 1.0
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_bootstrap_of_a_mean_is_close_to_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 2000)
    found = bootstrap(values)
    assert found.low == pytest.approx(values.mean() - 1.96 * values.std() / 2000**0.5, abs=0.01)
    assert found.high == pytest.approx(values.mean() + 1.96 * values.std() / 2000**0.5, abs=0.01)


def test_bootstrap_of_a_ratio_is_exact_where_observations_agree() -> None:
    sizes = np.arange(1, 50)
    assert bootstrap(sizes * 1.5, sizes)[:3] == pytest.approx((1.5, 1.5, 1.5))
