"""The grid posterior: truth, intervals, weights, outliers, rollouts, and its speed."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parent))
from worlds import TRUTH, grid, law

from feebcore.errors import FeebError
from feebcore.parts import Part
from feebcore.registry import Registry
from feebcore.scaling.points import Law, NotIdentifiable
from feebcore.scaling.posterior import best_law, drawn_laws, fit_posterior, optimum_posterior, predict_posterior
from feebcore.scaling.projection import project
from feebcore.scaling.rollouts import error_per_reach


def test_the_closed_form_is_non_negative_least_squares() -> None:
    rng = np.random.default_rng(0)
    terms, weights = rng.normal(0.3, 1.0, (200, 3, 12)), rng.uniform(0.1, 1.0, 12)
    coefficients, squares = project(terms, np.ones(200), weights)
    bound = 0
    for k in range(200):
        expected, norm = nnls((terms[k] * np.sqrt(weights)).T, np.sqrt(weights))
        assert coefficients[k] == pytest.approx(expected, abs=1e-6)
        assert squares[k] == pytest.approx(norm**2, abs=1e-9)
        bound += (expected == 0).any()
    assert 20 < bound < 180


def test_truth_is_recovered_where_there_is_no_noise() -> None:
    fit = fit_posterior(grid())
    for name, value in TRUTH.items():
        assert fit.parameters[name] == pytest.approx(value, rel=0.02), name
        assert fit.intervals[name][0] < value < fit.intervals[name][1], name
    assert max(map(abs, fit.residuals)) < 1e-4
    assert fit.flags == ()
    best = optimum_posterior(fit, 1e21)
    assert 6 * best.size * best.tokens == pytest.approx(1e21)
    assert best.prediction.loss == pytest.approx(law(best.size, best.tokens), rel=1e-3)
    assert law(best.size, best.tokens) < min(law(best.size * f, best.tokens / f) for f in (0.7, 1.4))
    assert best.size_low < best.size < best.size_high


def test_repeats_of_a_cell_are_one_measurement() -> None:
    """Copies of a run hold nothing new; seeds of a cell are averaged."""
    points = grid(0.002)
    once, thrice = fit_posterior(points), fit_posterior(points * 3)
    assert thrice.intervals["a"] == pytest.approx(once.intervals["a"])
    assert thrice.num_points == 75
    with pytest.raises(NotIdentifiable, match="4 distinct runs"):
        fit_posterior(points[:4] * 5)
    seeds = [dataclasses.replace(p, loss=p.loss * f, group=p.name) for p in points for f in (0.999, 1.001)]
    assert fit_posterior(seeds).parameters["alpha"] == pytest.approx(once.parameters["alpha"], rel=1e-3)


@pytest.mark.parametrize(("distinct", "repeats"), [(5, 1), (5, 5), (6, 1), (7, 1), (7, 3)])
def test_no_interval_below_eight_distinct_runs(distinct: int, repeats: int) -> None:
    points = [grid(0.002, sizes=4, budgets=3)[i] for i in (0, 5, 10, 3, 8, 2, 7)][:distinct]
    fit = fit_posterior(points * repeats)
    assert (fit.intervals, fit.samples) == ({}, ())
    assert np.isnan(predict_posterior(fit, 1e7, 1e9).low)
    assert any(f.startswith("no_intervals") for f in fit.flags)
    assert f"few_points: {distinct} distinct runs" in fit.flags[0]
    assert fit_posterior(grid(0.002, sizes=4, budgets=2)).intervals


@pytest.mark.parametrize("loss", [9.2, 2.0])
def test_a_run_that_is_far_off_is_named_and_does_not_move_the_law(loss: float) -> None:
    points = grid(0.002, sizes=4)
    clean = fit_posterior(points)
    points[7] = dataclasses.replace(points[7], loss=loss)
    fit = fit_posterior(points)
    (flag,) = [f for f in fit.flags if f.startswith("outliers")]
    assert points[7].name in flag
    assert "1 run" in flag
    assert fit.weights[7] < 1e-3 < fit.weights[6]
    assert fit.parameters["alpha"] == pytest.approx(clean.parameters["alpha"], abs=0.03)
    size, tokens = 3e7, 3e9
    assert predict_posterior(fit, size, tokens).loss == pytest.approx(law(size, tokens), rel=0.01)
    assert fit.scatter < 0.004


def test_runs_count_less_off_the_ridge_and_far_below_the_top() -> None:
    fit = fit_posterior(grid())
    weights = np.array(fit.weights).reshape(5, 5)
    assert (weights[:, 2] > weights[:, 0]).all()
    assert (weights[:, 2] > weights[:, 4]).all()
    assert (np.diff(weights[:, 2]) > 0).all()
    assert weights[4, 2] == pytest.approx(1.0, abs=0.05)
    half = fit_posterior([dataclasses.replace(p, weight=0.5) for p in grid()])
    assert half.weights == pytest.approx(0.5 * np.array(fit.weights), rel=1e-3)


def test_intervals_hold_what_the_rollouts_got_wrong() -> None:
    """Without D's term below 4e17 FLOPs the law bends: its own posterior does not know, the rollouts do."""
    points = [dataclasses.replace(p, loss=p.loss * (1 + 0.01 * np.log(8.1e18 / p.flops) ** 2 / 9)) for p in grid(0.001)]
    fit, blind = fit_posterior(points), fit_posterior(points, rollouts=False)
    assert {r.name for r in fit.rollouts} == {p.name for p in points if p.budget > 8.1e18 / 11}
    assert error_per_reach(fit) > 0.002
    size = optimum_posterior(fit, 8e19).size
    wide, narrow = (predict_posterior(f, size, 8e19 / 6 / size) for f in (fit, blind))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    assert wide.loss == narrow.loss
    assert wide.flags == ()
    assert "no prediction was checked" in narrow.flags[0]
    assert "extrapolates: 123 times" in predict_posterior(fit, 1e9, 1e21 / 6e9).flags[0]


def test_draws_carry_the_covariance_of_predictions() -> None:
    fit = fit_posterior(grid(0.002), draws=400)
    drawn = drawn_laws(fit).ln_loss([1e7, 2e7], [1e10, 1e10])
    assert drawn.shape == (400, 2)
    assert np.corrcoef(drawn.T)[0, 1] > 0.9
    assert best_law(fit).ln_loss([1e7], [1e10])[0, 0] == pytest.approx(drawn[:, 0].mean(), abs=0.005)


def test_fifty_refits_take_two_seconds_at_most() -> None:
    points = grid(0.002)
    fit_posterior(points)
    began = time.process_time()
    for seed in range(10):
        fit_posterior(points, seed=seed, rollouts=False)
    assert time.process_time() - began < 1.0  # .25 s of a quiet core; fifty in 1.3 s


def test_the_part_fits_predicts_and_allocates() -> None:
    spec = Registry().resolve("laws", "posterior")
    part: Law = Part("laws", spec, spec.config()).build()  # type: ignore[arg-type]
    fit = part.fit(grid(0.002), "non_embedding", 100, 0)
    assert fit == part.fit(grid(0.002), "non_embedding", 100, 0)
    assert part.optimum(fit, 1e20).prediction == part.predict(fit, part.optimum(fit, 1e20).size, part.optimum(fit, 1e20).tokens)
    with pytest.raises(FeebError, match="bootstrap 20: at least 100"):
        part.fit(grid(), "non_embedding", 20, 0)
