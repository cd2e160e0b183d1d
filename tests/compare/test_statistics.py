"""The formulas compared with SciPy's own and published ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from feebcore.compare.statistics import (
    CurvePoint,
    differences_of,
    holm,
    multiplier,
    paired,
    power_of,
    sd_at_most,
    seeds_needed,
    sign_flip_p,
    smallest_effect,
)

VALUES = [0.021, -0.004, 0.013, 0.017, 0.002, 0.011, -0.001]


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_interval_and_p_are_those_of_the_paired_t_test(alpha):
    after, before = np.array(VALUES) + 1.0, np.ones(len(VALUES))
    reference = stats.ttest_rel(after, before)
    ends = reference.confidence_interval(1 - alpha)
    found = paired(list(after - before), alpha)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))


def test_sign_flip_p_is_scipys_permutation_test():
    reference = stats.permutation_test((np.array(VALUES),), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(VALUES) == pytest.approx(reference.pvalue)


def test_sign_flip_p_of_many_pairs_is_drawn_and_close_to_the_t_test():
    values = np.random.default_rng(1).normal(0.4, 1.0, 30)
    assert sign_flip_p(values) == pytest.approx(paired(list(values)).p, abs=0.01)


def test_sign_flips_are_left_out_where_they_could_never_reject():
    assert paired(VALUES[:5]).p_flips is None
    assert paired([0.1, 0.2, 0.3, 0.2, 0.1, 0.2]).p_flips == 2 / 2**6


def test_equal_losses_are_no_difference_and_a_constant_one_is_no_proof():
    assert (paired([0.0] * 5).p, paired([0.0] * 5).low) == (1.0, 0.0)
    assert paired([0.25] * 5).p == 2 / 2**5


@pytest.mark.parametrize("values", [[0.1], [], [0.1, math.nan], [0.1, math.inf]])
def test_an_interval_needs_two_finite_differences(values):
    with pytest.raises(ValueError, match="at least 2 finite"):
        paired(values)


def test_holm_steps_down():
    """By hand: 0.01 x 4, then 0.013 x 3 raised to it, 0.03 x 2, and 0.04 x 1 raised to that."""
    adjusted, levels = holm([0.04, 0.01, 0.03, 0.013])
    assert adjusted == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert levels == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])


@given(st.lists(st.floats(0.0001, 1.0), min_size=1, max_size=4))
def test_holm_rejects_what_closed_testing_with_bonferroni_rejects(p_values):
    """Holm's procedure is the closure of Bonferroni: reject i when every set of hypotheses with i in it has min p <= 0.05 / size."""
    adjusted, levels = holm(p_values)
    indices = range(len(p_values))
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(indices, size)]
    for i in indices:
        rejected = all(min(p_values[j] for j in s) <= 0.05 / len(s) for s in sets if i in s)
        assert (adjusted[i] <= 0.05) == rejected or adjusted[i] == pytest.approx(0.05)
        assert (p_values[i] <= levels[i]) == rejected or p_values[i] == pytest.approx(levels[i])


def test_power_is_that_of_ten_thousand_simulated_tests():
    draws = np.random.default_rng(0).normal(1.0, 1.2, (10_000, 8))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(8))
    simulated = (np.abs(t) > stats.t.ppf(0.975, 7)).mean()
    assert power_of(1.0, 1.2, 8) == pytest.approx(simulated, abs=0.015)


def test_seeds_needed_is_the_first_number_with_enough_power():
    n = seeds_needed(0.01, 0.012)
    assert power_of(0.01, 0.012, n) >= 0.8 > power_of(0.01, 0.012, n - 1)
    assert seeds_needed(1e-6, 1.0) is None
    assert power_of(smallest_effect(0.012, 5), 0.012, 5) == pytest.approx(0.8)


def test_power_stays_a_number_far_beyond_the_edge():
    assert power_of(1000.0, 0.001, 5) == pytest.approx(1.0)
    assert seeds_needed(1000.0, 0.001) == 2


def test_the_largest_likely_scatter_is_that_of_chi_square():
    draws = np.random.default_rng(0).normal(0, 1, (20_000, 5)).std(1, ddof=1)
    assert np.mean([sd_at_most(float(sd), 5) >= 1.0 for sd in draws[:4000]]) == pytest.approx(0.8, abs=0.02)


def test_a_pair_with_a_diverged_run_is_in_no_interval_but_counted():
    (d,) = differences_of([1.0, 1.1, None, 1.0], {"v": [0.9, None, 1.0, 0.95]})
    assert d.paired.num_pairs == 2
    assert d.paired.mean == pytest.approx(-0.075)
    assert (d.diverged, d.baseline_diverged, d.num_seeds) == (1, 1, 4)


def test_intervals_are_at_the_level_at_which_holm_tested():
    base = [1.0, 1.1, 1.2, 1.05, 1.0]
    a, b = differences_of(base, {"a": [0.9, 1.02, 1.1, 0.95, 0.88], "b": [1.0, 1.12, 1.19, 1.06, 1.01]})
    assert a.paired.alpha == pytest.approx(0.025)
    assert b.paired.alpha == pytest.approx(0.05)


# --- the compute multiplier on a power law ---------------------------------------------------------------------------------


def law(factor):
    """Loss at a multiple of the baseline's budget."""
    return 1.0 + 0.5 * factor**-0.3


def curve(factors, error=0.0):
    return [CurvePoint(f, law(1.0) - law(f), error) for f in factors]


@pytest.mark.parametrize("true", [0.6, 1.0, 1.3, 1.9])
def test_a_variant_that_is_as_good_as_so_much_compute_has_that_multiplier(true):
    difference = paired([law(true) - law(1.0) + e for e in (-1e-4, 0.0, 1e-4)])
    found = multiplier(curve([0.5, 0.7, 1.4, 2.0]), difference)
    assert found.value == pytest.approx(true, rel=0.01)
    assert found.low < found.value < found.high


@pytest.mark.parametrize(("true", "side"), [(0.3, "above"), (3.0, "below")])
def test_outside_the_curve_the_multiplier_cannot_be_told(true, side):
    difference = paired([law(true) - law(1.0) + e for e in (-1e-4, 0.0, 1e-4)])
    found = multiplier(curve([0.5, 2.0]), difference)
    assert found.value is None
    assert f"{side} the baseline's curve" in found.why
    assert (found.low, found.high) == (None, None)


def test_an_interval_that_leaves_the_curve_is_open_at_that_end():
    difference = paired([law(1.8) - law(1.0) + e for e in (-0.02, 0.0, 0.02)])
    found = multiplier(curve([0.5, 2.0]), difference)
    assert found.value is not None
    assert found.high is None


def test_noise_of_the_curve_widens_the_interval():
    difference = paired([law(1.3) - law(1.0) + e for e in (-1e-4, 0.0, 1e-4)])
    sharp, noisy = (multiplier(curve([0.5, 2.0], error), difference) for error in (0.001, 0.01))
    assert noisy.high - noisy.low > 2 * (sharp.high - sharp.low)


def test_a_flat_or_missing_curve_says_why_nothing_can_be_told():
    difference = paired([0.01, 0.02, 0.0])
    assert "one budget only" in multiplier([], difference).why
    assert "noise" in multiplier(curve([0.5, 2.0], 0.2), difference).why
    assert "fewer than 2 pairs" in multiplier(curve([0.5, 2.0]), None).why
