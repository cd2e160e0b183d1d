"""The forms next to Chinchilla's: each finds the law that made its runs, and says when there is none to find."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from worlds import TRUTH, grid, kaplan, law, point

from feeb_evals.laws.data_constrained.data_constrained import effective
from feebcore.parts import Part
from feebcore.registry import get_registry
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Point, Prediction
from feebcore.scaling.posterior import CHINCHILLA


def build(name: str, **options: object) -> Law:
    spec = get_registry().resolve("laws", name)
    return Part("laws", spec, spec.config(**options)).build()  # type: ignore[arg-type, no-any-return]


def test_tied_finds_the_one_exponent() -> None:
    points = [dataclasses.replace(p, loss=1.8 + 500 / p.non_embedding**0.36 + 1500 / p.tokens**0.36) for p in grid()]
    fit = build("tied").fit(points, "non_embedding", 100, 0)
    assert fit.parameters["alpha"] == pytest.approx(0.36, rel=1e-2)
    assert fit.intervals["alpha"][0] < 0.36 < fit.intervals["alpha"][1]
    assert fit.parameters["a"] == 0.5
    assert fit.flags == ()
    best = build("tied").optimum(fit, 1e20)
    assert best.size / build("tied").optimum(fit, 1e18).size == pytest.approx(10.0)


def test_kaplan_is_recovered() -> None:
    points = [dataclasses.replace(p, loss=kaplan(p.non_embedding, p.tokens)) for p in grid(width=5)]
    fit = build("kaplan").fit(points, "non_embedding", 100, 0)
    for name, value in (("alpha_N", 0.076), ("alpha_D", 0.095)):
        assert fit.parameters[name] == pytest.approx(value, rel=0.02)
        assert fit.intervals[name][0] < value < fit.intervals[name][1]
    assert fit.parameters["a"] == pytest.approx(0.095 / 0.171, abs=0.005)
    assert build("kaplan").predict(fit, 1e8, 1e11).loss == pytest.approx(kaplan(1e8, 1e11), rel=2e-3)


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_the_frontier_is_that_of_the_law_behind_it(method: str) -> None:
    part = build("frontier", method=method)
    fit = part.fit(grid(sizes=7), "non_embedding", 100, 0)
    a = TRUTH["beta"] / (TRUTH["alpha"] + TRUTH["beta"])
    assert fit.parameters["gamma"] == pytest.approx(TRUTH["alpha"] * a, abs=0.02)
    assert fit.parameters["a"] == pytest.approx(a, abs=0.02)
    assert fit.intervals["a"][0] < a < fit.intervals["a"][1]
    best = part.optimum(fit, 2e19)
    assert best.prediction.low < law(best.size, best.tokens) < best.prediction.high
    assert best.prediction.loss == pytest.approx(law(best.size, best.tokens), rel=3e-3)
    assert part.predict(fit, best.size / 10, best.tokens * 10).flags[-1].startswith("off_frontier")
    assert {r.name[:7] for r in fit.rollouts} == {"minimum"}


def test_the_frontier_needs_three_minima() -> None:
    with pytest.raises(NotIdentifiable, match="2 of 2 budgets have an interior minimum, and the frontier needs 3"):
        build("frontier").fit(grid(budgets=2), "non_embedding", 0, 0)
    three = build("frontier").fit(grid(budgets=3), "non_embedding", 100, 0)
    assert three.intervals == {}
    assert any(f.startswith("no_intervals") for f in three.flags)


PAPER = CHINCHILLA.surfaces(np.array([[1.87, 521.0, 1488.0, 0.3527, 0.3527, 0.5]]))
WORTH = np.array([[15.387756, 5.309743]])


def _repeating(noise: float = 0.001) -> list[Point]:
    rng = np.random.default_rng(0)
    points = []
    for unique in (1e8, 4e8, 1e9, 4e9):
        for size in (1e7, 4e7, 1e8, 4e8):
            for epochs in (1, 2, 4, 12, 40):
                n, d = effective(np.array([size]), np.array([unique * epochs]), np.array([unique]), PAPER, WORTH)
                loss = float(np.exp(PAPER.ln_loss(n, d)[0, 0] + noise * rng.standard_normal()))
                points.append(dataclasses.replace(point(size, unique * epochs, loss), unique_tokens=unique))
    return points


def test_the_worth_of_repeated_epochs_is_found() -> None:
    part = build("data_constrained")
    fit: LawFit = part.fit(_repeating(), "non_embedding", 200, 0)
    assert fit.parameters["R_D"] == pytest.approx(WORTH[0, 0], rel=0.35)
    assert fit.parameters["R_N"] == pytest.approx(WORTH[0, 1], rel=0.35)
    assert fit.parameters["alpha"] == pytest.approx(0.3527, abs=0.01)
    repeated = dataclasses.replace(point(1e8, 4e9, 3.0), unique_tokens=1e9)
    fresh = dataclasses.replace(repeated, unique_tokens=None)
    n, d = effective(np.array([1e8]), np.array([4e9]), np.array([1e9]), PAPER, WORTH)
    predicted: Prediction = part.predict_point(fit, repeated)
    assert predicted.loss == pytest.approx(float(np.exp(PAPER.ln_loss(n, d)[0, 0])), rel=3e-3)
    assert predicted.loss > part.predict_point(fit, fresh).loss


def test_fresh_tokens_are_chinchillas_and_four_epochs_worth_93_percent() -> None:
    n, d = effective(np.array([1e7]), np.array([2e8]), np.array([2e8]), PAPER, WORTH)
    assert (n[0, 0], d[0, 0]) == (1e7, 2e8)
    _, four = effective(np.array([1e7]), np.array([4e8]), np.array([1e8]), PAPER, WORTH)
    assert four[0, 0] / 4e8 == pytest.approx(0.931, abs=0.001)


def test_repetition_that_was_not_measured_is_refused() -> None:
    with pytest.raises(NotIdentifiable, match="0 distinct runs see tokens again"):
        build("data_constrained").fit(grid(), "non_embedding", 0, 0)
