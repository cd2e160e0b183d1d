"""Parametric fits against published numbers, synthetic truths, and what must be refused or flagged."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parent))
from worlds import TRUTH, law, point

from feebcore.errors import FeebError
from feebcore.scaling.fit import DELTA, NAMES, Surface, fit_chinchilla
from feebcore.scaling.points import NotIdentifiable, Point
from feebcore.scaling.posterior import optimum_posterior, predict_posterior


def _grid(noise: float = 0.0, seed: int = 0, sizes: int = 6, budgets: int = 5) -> list[Point]:
    rng = np.random.default_rng(seed)
    points = []
    for budget in np.geomspace(1e17, 1e20, budgets):
        for factor in np.geomspace(0.15, 6, sizes):
            size = round(factor * 0.3 * (budget / 6) ** 0.5)
            tokens = budget / 6 / size
            points.append(point(size, tokens, law(size, tokens) * float(np.exp(noise * rng.normal())), budget))
    return points


def _epoch(gold) -> list[Point]:
    rows = gold("chinchilla_epoch.csv")
    size, flops, loss = (np.array([float(r[k]) for r in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    keep = loss < np.sort(loss)[-5]
    return [Point("", 0, n, 0, c / (6 * n), c, x) for n, c, x in zip(size[keep], flops[keep], loss[keep], strict=True)]


def test_epoch_reanalysis_of_chinchilla_is_reproduced(gold) -> None:
    points = _epoch(gold)
    assert len(points) == 240
    fit = fit_chinchilla(points, bootstrap=1000, seed=42)
    assert fit.objective == pytest.approx(1.0182740e-3, rel=1e-6)
    assert fit.objective <= 1.01827407e-3 + 1e-9
    p = fit.parameters
    assert p["A"] == pytest.approx(477.84, rel=5e-3)
    assert p["B"] == pytest.approx(2143.86, rel=5e-3)
    assert p["E"] == pytest.approx(1.817236, rel=1e-4)
    assert p["alpha"] == pytest.approx(0.347313, abs=2e-4)
    assert p["beta"] == pytest.approx(0.367183, abs=2e-4)
    assert p["a"] == pytest.approx(0.5139, abs=2e-3)
    errors = dict(zip(NAMES, np.std(fit.samples, axis=0), strict=True))
    for name, published in (("A", 124.52), ("B", 1293.28), ("E", 0.02566), ("alpha", 0.01540), ("beta", 0.02060), ("a", 0.020)):
        assert errors[name] == pytest.approx(published, rel=0.15), name
    for name, ends, tolerance in (
        ("A", (285, 744), 74),
        ("B", (1042, 5810), 581),
        ("E", (1.769, 1.871), 0.006),
        ("alpha", (0.317, 0.373), 0.006),
        ("beta", (0.331, 0.415), 0.006),
    ):
        assert fit.intervals[name] == pytest.approx(ends, abs=tolerance), name
    assert [flag.partition(":")[0] for flag in fit.flags] == ["outliers"]
    chinchilla = predict_posterior(fit, 70e9, 1.4e12)
    assert chinchilla.low < chinchilla.loss < chinchilla.high


def test_the_outliers_move_beta_as_published(gold) -> None:
    rows = gold("chinchilla_epoch.csv")
    points = [Point("", 0, n, 0, float(r["Training FLOP"]) / 6 / n, 1.0, float(r["loss"])) for r in rows for n in [float(r["Model Size"])]]  # type: ignore[arg-type]
    p = fit_chinchilla(points, bootstrap=0).parameters
    assert p["beta"] == pytest.approx(0.4531, abs=2e-3)
    assert p["A"] == pytest.approx(495.7, rel=5e-3)


def test_published_starts_reach_the_same_minimum(gold) -> None:
    surface = Surface.of(*(np.array(v) for v in zip(*[(p.non_embedding, p.tokens, p.loss) for p in _epoch(gold)], strict=True)))
    grid = surface.published_starts()
    assert len(grid) == 4500
    chosen = grid[np.random.default_rng(0).choice(len(grid), 100, replace=False)]
    _, values = surface.minimize(chosen, max_iterations=600)
    assert values.min() == pytest.approx(1.0182740e-3, rel=1e-6)


def test_scipy_finds_no_lower_minimum() -> None:
    points = _grid(noise=0.01)
    fit = fit_chinchilla(points, bootstrap=0)
    surface = Surface.of(*(np.array(v, dtype=float) for v in zip(*[(p.non_embedding, p.tokens, p.loss) for p in points], strict=True)))

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = surface.objective(x[None], np.ones((1, len(points))))
        return float(value[0]), gradient[0]

    reached = [minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-15}).fun for start in surface.starts()[::18]]
    assert fit.objective <= min(reached) * DELTA * (1 + 1e-6)


def test_gradient_is_the_derivative() -> None:
    points = _grid(noise=0.02, sizes=3, budgets=2)
    surface = Surface.of(*(np.array(v, dtype=float) for v in zip(*[(p.non_embedding, p.tokens, p.loss) for p in points], strict=True)))
    weights = np.ones((1, len(points)))
    for start in surface.starts()[[1, 41, 106]]:
        _, gradient = surface.objective(start[None], weights)
        for i in range(5):
            step = np.eye(5)[i] * 1e-6
            difference = (surface.objective((start + step)[None], weights)[0] - surface.objective((start - step)[None], weights)[0]) / 2e-6
            assert gradient[0, i] == pytest.approx(difference[0], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1 / 240, 1e3])
def test_the_minimum_does_not_depend_on_the_objectives_scale(scale: float) -> None:
    """Hoffmann et al. averaged where they meant to sum, and their optimizer stopped early."""
    points = _grid(noise=0.01)
    surface = Surface.of(*(np.array(v, dtype=float) for v in zip(*[(p.non_embedding, p.tokens, p.loss) for p in points], strict=True)))
    plain, at = surface.minimize(surface.starts()[::6])
    scaled, scaled_at = surface.minimize(surface.starts()[::6], scale=scale)
    assert scaled_at.min() == pytest.approx(at.min(), rel=1e-8)
    assert surface.named(scaled)[scaled_at.argmin()] == pytest.approx(surface.named(plain)[at.argmin()], rel=1e-4)


def test_noise_free_truth_is_recovered() -> None:
    fit = fit_chinchilla(_grid(), bootstrap=100)
    for name, value in TRUTH.items():
        assert fit.parameters[name] == pytest.approx(value, rel=1e-4), name
    assert fit.flags == ()
    best = optimum_posterior(fit, 1e21)
    size, tokens = best.size, best.tokens
    assert 6 * size * tokens == pytest.approx(1e21)
    assert law(size, tokens) < min(law(size * f, tokens / f) for f in (0.8, 1.25))


@pytest.mark.slow
def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    hits = 0
    for seed in range(10):
        low, high = fit_chinchilla(_grid(noise=0.005, seed=seed), bootstrap=100, seed=seed).intervals["a"]
        hits += low <= truth <= high
    assert hits >= 8


def test_few_points_fit_in_time_predict_well_and_say_that_they_are_few() -> None:
    points = _grid(noise=0.002, sizes=4, budgets=3)
    began = time.process_time()
    fit = fit_chinchilla(points, bootstrap=200)
    assert time.process_time() - began < 6.0  # 0.6 s of a quiet core
    assert any(f.startswith("few_points") for f in fit.flags)
    size = 3e9
    tokens = 4e20 / 6 / size
    predicted = predict_posterior(fit, size, tokens)
    assert predicted.loss == pytest.approx(law(size, tokens), rel=0.01)
    assert predicted.low < law(size, tokens) < predicted.high
    assert 0.0005 < fit.scatter < 0.006


def test_a_wide_interval_of_the_exponent_is_flagged() -> None:
    flags = fit_chinchilla(_grid(noise=0.03, sizes=3, budgets=3), bootstrap=200).flags
    assert any(f.startswith("not_identified") for f in flags)


def test_a_floor_that_the_points_do_not_show_is_flagged() -> None:
    points = [point(n, d, 50 / n**0.3 + 50 / d**0.3) for n in (1e4, 1e5, 1e6, 1e7) for d in (1e6, 1e7, 1e8)]
    fit = fit_chinchilla(points, bootstrap=0)
    assert fit.parameters["E"] < 0.01
    assert any(f.startswith("E_at_bound") for f in fit.flags)
    assert any(f.startswith("no_intervals") for f in fit.flags)


def test_narrow_sizes_and_poor_fits_are_flagged() -> None:
    points = [point(n, d, law(n, d)) for n in (1e6, 2e6, 3e6) for d in (1e8, 3e8, 9e8, 2e9, 6e9)]
    assert any(f.startswith("narrow_sizes") for f in fit_chinchilla(points, bootstrap=0).flags)
    assert any(f.startswith("poor_fit") for f in fit_chinchilla(_grid(noise=0.05), bootstrap=0).flags)


@pytest.mark.parametrize(
    ("points", "why"),
    [
        ([point(n, 20 * n, law(n, 20 * n)) for n in np.geomspace(1e6, 1e9, 12)], "D in proportion to N"),
        ([point(n, 1e18 / n, law(n, 1e18 / n)) for n in np.geomspace(1e6, 1e9, 12)], "one budget"),
        ([point(1e6, d, law(1e6, d)) for d in np.geomspace(1e7, 1e9, 12)], "vary both"),
        (_grid()[:4], "4 distinct runs cannot determine 5 parameters"),
        ([*_grid(), point(1e6, 1e8, float("nan"))], "exclude diverged runs"),
    ],
)
def test_what_cannot_be_identified_is_refused(points: list[Point], why: str) -> None:
    with pytest.raises(NotIdentifiable, match=why):
        fit_chinchilla(points, bootstrap=0)


def test_the_fit_is_the_same_for_the_same_seed_and_names_its_convention() -> None:
    points = _grid(noise=0.01, sizes=3, budgets=3)
    first, second = (fit_chinchilla(points, "total", bootstrap=100, seed=5) for _ in range(2))
    assert first == second
    assert first.parameter_count == "total"
    assert first.parameters["A"] == pytest.approx(fit_chinchilla(points, bootstrap=0).parameters["A"] * 2 ** first.parameters["alpha"], rel=1e-3)
    assert "samples" not in first.to_dict()
    with pytest.raises(FeebError, match="parameter_count 'all'"):
        points[0].size("all")  # type: ignore[arg-type]


def test_a_point_keeps_exact_and_approximate_flops_apart() -> None:
    point = Point("a", 300, 100, 200, 1e6, 9e8, 3.0)
    plain = point.to_dict()
    assert plain["flops_6nd"] == {"non_embedding": 6e8, "matmul": 12e8, "total": 18e8}
    assert plain["flops"] == 9e8
    assert plain["flops_per_token"] == 900
