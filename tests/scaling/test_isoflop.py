"""Approach 2 against Porian et al. 2024, noise-free parabolas, and edges."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from feebcore.scaling.isoflop import allocate, minima, minimum
from feebcore.scaling.points import NotIdentifiable, Point

EXPERIMENT = ("file", "dataset", "hparams", "warmup", "decay", "param_count", "val")


@pytest.mark.parametrize(("method", "tolerance"), [("akima", 0.01), ("parabola", 0.08)])
def test_porian_exponents_are_reproduced_from_their_points(gold, method, tolerance) -> None:
    """Fifteen experiments, exponents from .50 to .86, each near the published weighted fit."""
    rows, fits = gold("porian_isoflop_points.csv"), gold("porian_fits.csv")
    for fit in fits:
        mine = [r for r in rows if all(r[k] == fit[k] for k in EXPERIMENT)]
        points = [Point(str(i), 0, round(float(r["n"])), 0, float(r["t"]), 0.0, float(r["loss"]), float(r["flops"])) for i, r in enumerate(mine)]
        allocation = allocate(minima(points, "non_embedding", method))
        published = float(fit["bmw_n_exponent"])
        assert allocation.exponent == pytest.approx(published, abs=tolerance), fit["dataset"]
        assert allocation.low < allocation.exponent < allocation.high
    assert len(fits) == 15


def _curve(budget: float, center: float, sizes: np.ndarray) -> list[Point]:
    return [Point("", 0, int(n), 0, budget / 6 / n, budget, 3 + 0.1 * np.log(n / center) ** 2, budget) for n in sizes]


def test_a_parabola_is_found_exactly_and_its_minima_give_the_exponent() -> None:
    points = [p for c in (1e15, 1e16, 1e17) for p in _curve(c, 2 * c**0.4, 2 * c**0.4 * np.array([0.3, 0.7, 1.1, 2.5]))]
    found = minima(points, "non_embedding")
    assert [m.problem for m in found] == ["", "", ""]
    for m in found:
        assert m.size == pytest.approx(2 * m.budget**0.4, rel=1e-3)
        assert m.tokens == pytest.approx(m.budget / 6 / m.size, rel=1e-3)
        assert m.loss == pytest.approx(3.0, abs=1e-4)
    allocation = allocate(found)
    assert allocation.exponent == pytest.approx(0.4, abs=1e-3)
    assert allocation.coefficient == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("method", ["parabola", "akima"])
@pytest.mark.parametrize(("sizes", "edge"), [([2e6, 4e6, 8e6, 9e6], "smallest"), ([1e5, 2e5, 4e5, 8e5], "largest")])
def test_a_minimum_beyond_the_sizes_is_said_to_be_there(method, sizes, edge) -> None:
    curve = _curve(1e16, 1e6, np.array(sizes))
    found = minimum(1e16, *(np.array(v, dtype=float) for v in zip(*[(p.non_embedding, p.tokens, p.loss) for p in curve], strict=True)), method=method)
    assert edge in found.problem
    with pytest.raises(NotIdentifiable, match="0 of 2 budgets have an interior minimum"):
        allocate([found, found])


def test_two_sizes_or_a_hill_have_no_minimum() -> None:
    size = np.array([1e5, 1e6, 1e7])
    assert minimum(1e16, size[:2], size[:2], np.array([3.0, 2.0])).problem == "fewer than 3 sizes"
    assert "bends down" in minimum(1e16, size, size, np.array([3.0, 3.5, 3.0])).problem


def test_a_best_size_that_falls_with_compute_is_refused() -> None:
    points = [p for c, n in ((1e15, 1e7), (1e16, 1e6)) for p in _curve(c, n, n * np.array([0.3, 1.0, 3.0]))]
    with pytest.raises(NotIdentifiable, match="falls with compute"):
        allocate(minima(points, "non_embedding"))


def test_intervals_of_the_exponent_hold_the_truth_about_as_often_as_they_say() -> None:
    """Thirty sweeps of parabolas at .3 % noise, exponent .4."""
    sizes, hits = np.geomspace(1 / 3, 3, 7), 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        points = [p for c in (1e15, 1e16, 1e17) for p in _curve(c, 2 * c**0.4, 2 * c**0.4 * sizes)]
        points = [dataclasses.replace(p, loss=(p.loss - 0.2 * np.log10(p.budget / 1e15)) * np.exp(0.003 * rng.standard_normal())) for p in points]
        allocation = allocate(minima(points, "non_embedding"))
        hits += allocation.low <= 0.4 <= allocation.high
    assert hits >= 27
