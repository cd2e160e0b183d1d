"""Bad points and bad fits: each is refused with the run's name, or flagged, by every law and by the isoFLOP minima."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parent))
from worlds import grid, kaplan, law, point

from feebcore.errors import FeebError
from feebcore.parts import Part
from feebcore.registry import get_registry
from feebcore.scaling import isoflop
from feebcore.scaling.checks import methods_differ
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.fit import fit_chinchilla
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Point

LAWS = ("chinchilla", "posterior", "tied", "kaplan", "frontier", "data_constrained")
OF_N_AND_D = LAWS[:4]


def build(name: str) -> Law:
    spec = get_registry().resolve("laws", name)
    return Part("laws", spec, spec.config()).build()  # type: ignore[arg-type, no-any-return]


def fit(name: str, points: list[Point], draws: int = 0) -> LawFit:
    return build(name).fit(points, "non_embedding", draws, 0)


def changed(points: list[Point], index: int = 7, **changes: object) -> list[Point]:
    return [dataclasses.replace(p, **changes) if i == index else p for i, p in enumerate(points)]  # type: ignore[arg-type]


def repeated() -> list[Point]:
    """The grid, and some of it over two and four epochs."""
    points = [dataclasses.replace(p, unique_tokens=p.tokens) for p in grid(0.001)]
    more = [dataclasses.replace(p, name=f"{p.name}-{k}", tokens=k * p.tokens, flops=k * p.flops, loss=p.loss - 0.02 * k) for p in points[:4] for k in (2, 4)]
    return points + more


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("key", ["loss", "tokens", "weight"])
def test_a_value_that_is_no_measurement_is_refused_and_its_run_named(name: str, key: str) -> None:
    for value in (float("nan"), float("inf"), -1.0, 0.0):
        points = changed(repeated(), 7, **{key: value})
        with pytest.raises(NotIdentifiable, match=f"run {points[7].name.replace('+', '.')}: {'D' if key == 'tokens' else key} is"):
            fit(name, points)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("size", [0, -5])
def test_a_size_that_is_none_is_refused(name: str, size: int) -> None:
    with pytest.raises(NotIdentifiable, match="N is"):
        fit(name, changed(repeated(), 7, non_embedding=size))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_isoflop_minima_refuse_the_same(value: float) -> None:
    for key in ("loss", "tokens"):
        with pytest.raises(NotIdentifiable, match="must be positive and finite"):
            isoflop.minima(changed(grid(), 3, **{key: value}), "non_embedding")
    with pytest.raises(NotIdentifiable, match="N is 0"):
        isoflop.minima(changed(grid(), 3, non_embedding=0), "non_embedding")
    size = np.array([1e5, 1e6, 1e7])
    with pytest.raises(NotIdentifiable, match=r"1e\+16 FLOPs, row 2: loss is"):
        isoflop.minimum(1e16, size, size, np.array([3.0, value, 3.0]))


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("loss", [lambda p: 3.0, lambda p: 3.0 + 0.1 * np.log(p.flops / 1e17), lambda p: 3.0 + 0.1 * np.log(p.tokens / 1e8)])
def test_losses_that_do_not_fall_are_refused(name: str, loss: Callable[[Point], float]) -> None:
    with pytest.raises(NotIdentifiable):
        fit(name, [dataclasses.replace(p, loss=float(loss(p))) for p in repeated()])


def test_isoflop_minima_of_losses_that_do_not_fall_are_refused() -> None:
    """Rounding gave a constant loss the exponent .19."""
    with pytest.raises(NotIdentifiable, match="the losses differ by less than"):
        isoflop.allocate(isoflop.minima([dataclasses.replace(p, loss=3.0 + 1e-12 * i) for i, p in enumerate(grid())], "non_embedding"))
    rising = [dataclasses.replace(p, loss=p.loss * (p.budget / 1e17) ** 0.2) for p in grid()]
    with pytest.raises(NotIdentifiable, match="does not fall with compute"):
        isoflop.allocate(isoflop.minima(rising, "non_embedding"))


@pytest.mark.parametrize("name", LAWS)
def test_repeats_are_counted_once(name: str) -> None:
    """Five distinct runs five times over are five runs, and state no interval."""
    with pytest.raises(NotIdentifiable):
        fit(name, repeated()[:4] * 5, 100)
    if name in OF_N_AND_D:
        five = [grid(0.002, sizes=4, budgets=3)[i] for i in (0, 5, 10, 3, 8)]
        many = fit(name, five * 5, 100)
        assert (many.intervals, many.samples) == ({}, ())
        assert any(f.startswith("no_intervals: 5 distinct runs") for f in many.flags)
        assert any(f.startswith("few_points: 5 distinct runs") for f in many.flags)


@pytest.mark.parametrize("name", ["chinchilla", "posterior"])
def test_copies_do_not_shrink_an_interval(name: str) -> None:
    """Chinchilla resamples cells, so that three copies of each are what one was."""
    points = grid(0.002, sizes=4, budgets=4)
    once, thrice = fit(name, points, 200), fit(name, points * 3, 200)
    width = [f.intervals["a"][1] - f.intervals["a"][0] for f in (once, thrice)]
    assert width[1] == pytest.approx(width[0], rel=0.02)


@pytest.mark.parametrize("name", OF_N_AND_D)
@pytest.mark.parametrize("loss", [9.2, 2.0])
def test_outliers_are_named_and_do_not_widen_predictions(name: str, loss: float) -> None:
    points = grid(0.002, sizes=4)
    if name == "kaplan":
        points = [dataclasses.replace(p, loss=p.loss / law(p.non_embedding, p.tokens) * kaplan(p.non_embedding, p.tokens)) for p in points]
    points = changed(points, 7, loss=loss)
    result = fit(name, points, 100)
    (flag,) = [f for f in result.flags if f.startswith("outliers")]
    assert points[7].name in flag
    assert result.scatter < 0.03
    prediction = build(name).predict(result, 3e7, 3e9)
    assert prediction.high / prediction.low < 1.25


def test_an_outlier_of_a_curve_does_not_move_its_minimum() -> None:
    points = grid(0.001, sizes=7)
    clean = isoflop.minima(points, "non_embedding")[0]
    moved = isoflop.minima(changed(points, 5, loss=9.2), "non_embedding")[0]
    assert moved.size == pytest.approx(clean.size, rel=0.1)


def test_a_diverged_run_is_named_by_the_frontier_too() -> None:
    points = changed(grid(0.001, sizes=7), 5, loss=9.2)
    (flag,) = [f for f in fit("frontier", points).flags if f.startswith("outliers")]
    assert points[5].name in flag


@pytest.mark.parametrize("key", ["flops", "budget", "unique_tokens"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_other_numbers_that_cannot_be_are_refused(key: str, value: float) -> None:
    for name in LAWS:
        with pytest.raises(NotIdentifiable, match=f"{key} is"):
            fit(name, changed(repeated(), 3, **{key: value}))


@pytest.mark.parametrize(("key", "value"), [("loss", 1e30), ("loss", 1e-30), ("non_embedding", 10**20), ("tokens", 1e20), ("non_embedding", float("nan"))])
def test_magnitudes_that_no_model_has_are_refused(key: str, value: float) -> None:
    for name in LAWS:
        with pytest.raises(NotIdentifiable, match=r"run .* is "):
            fit(name, changed(repeated(), 3, **{key: value}))


@pytest.mark.parametrize("name", ["chinchilla", "posterior", "frontier"])
@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_only_ratios_of_weights_mean_something(name: str, scale: float) -> None:
    points = grid(0.002)
    plain, scaled = fit(name, points), fit(name, [dataclasses.replace(p, weight=scale) for p in points])
    assert scaled.parameters == pytest.approx(plain.parameters, rel=1e-6)


@pytest.mark.parametrize("name", ["posterior", "kaplan"])
def test_no_input_ends_in_a_warning_or_a_crash(name: str, recwarn: pytest.WarningsRecorder) -> None:
    """What is neither refused nor right comes with doubts, and finite numbers."""
    points = grid(0.002)
    hostile = [
        [dataclasses.replace(p, loss=3 * (p.flops / 1e17) ** -2.0) for p in points],
        [dataclasses.replace(p, loss=float(np.exp(np.random.default_rng(i).normal()))) for i, p in enumerate(points)],
        [dataclasses.replace(p, loss=p.loss / 2) if i % 2 else p for i, p in enumerate(points)],
        [dataclasses.replace(p, loss=9.2) if i % 3 == 0 else p for i, p in enumerate(points)],
        [dataclasses.replace(p, weight=10.0 ** (i - 12)) for i, p in enumerate(points)],
    ]
    for runs in hostile:
        try:
            result = fit(name, runs, 100)
        except NotIdentifiable:
            continue
        assert all(np.isfinite(v) for v in result.parameters.values())
        for flops in (1e6, 1e22, 1e35):
            build(name).optimum(result, flops)
    assert not recwarn.list


@pytest.mark.parametrize("name", [*OF_N_AND_D, "frontier"])
def test_units_that_cannot_be_are_flagged(name: str) -> None:
    points = grid(0.001)
    in_millions = [
        dataclasses.replace(p, non_embedding=max(1, p.non_embedding // 10**6), matmul=max(1, p.matmul // 10**6), tokens=p.tokens / 1e9) for p in points
    ]
    swapped = [dataclasses.replace(p, non_embedding=int(p.tokens), matmul=int(p.tokens), tokens=float(p.non_embedding)) for p in points]
    flags = fit(name, in_millions).flags
    assert any(f.startswith("flops_mismatch") for f in flags)
    assert any(f.startswith("units: D / N outside") for f in fit(name, [dataclasses.replace(p, flops=0.0) for p in in_millions]).flags)
    assert any(f.startswith("units: D / N outside") for f in fit(name, swapped).flags)
    assert not any(f.startswith(("units", "flops_mismatch", "mixed_counts")) for f in fit(name, points).flags)


@pytest.mark.parametrize("name", [*OF_N_AND_D, "frontier"])
def test_two_ways_of_counting_are_flagged(name: str) -> None:
    points = [dataclasses.replace(p, non_embedding=round(1.4 * p.non_embedding), matmul=round(1.4 * p.matmul)) if i % 2 else p for i, p in enumerate(grid())]
    (flag,) = [f for f in fit(name, points).flags if f.startswith("mixed_counts")]
    assert points[0].name in flag


@pytest.mark.parametrize("name", OF_N_AND_D)
@pytest.mark.parametrize(("side", "factor"), [("below", 0.04), ("above", 25.0)])
def test_sizes_on_one_side_of_the_minima_are_flagged(name: str, side: str, factor: float) -> None:
    points = [point(n, b / 6 / n, law(n, b / 6 / n), b) for b in (1e18, 4e18, 1.6e19) for n in 0.3 * (b / 6) ** 0.5 * factor * np.array([0.5, 0.8, 1.3, 2.0])]
    assert any(f.startswith(f"one_sided: every size lies {side}") for f in fit(name, points).flags)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("number", [1, 20, 99])
def test_too_few_resamples_are_refused(name: str, number: int) -> None:
    with pytest.raises(FeebError, match=f"bootstrap {number}: at least 100"):
        fit(name, repeated(), number)


def test_too_few_resamples_are_refused_in_a_recipe() -> None:
    planner = {"name": "isoflop", "sizes": [{"d_model": 8}], "budgets": [1e7]}
    with pytest.raises(ValidationError, match="at least 100 for an interval, or 0 for none"):
        SweepConfig.model_validate({"planner": planner, "bootstrap": 1})


def test_methods_that_disagree_are_flagged() -> None:
    assert methods_differ(0.50, 0.54) == []
    assert methods_differ(0.50, 0.56)[0].startswith("methods_differ")


def test_tokens_at_a_minimum_are_those_of_least_loss() -> None:
    """D off C / 6N, as where FLOPs count attention: the minimum in ln D has no error of interpolation between unequal neighbours."""
    size = np.array([1e6, 2.5e6, 4e6, 1e7])
    tokens = 1e16 / 6 / size**1.05
    best = isoflop.minimum(1e16, size, tokens, 3 + 0.1 * np.log(size / 3e6) ** 2)
    assert best.tokens == pytest.approx(1e16 / 6 / 3e6**1.05, rel=1e-6)


@pytest.mark.parametrize("name", LAWS)
def test_predictions_beyond_what_was_checked_say_so(name: str) -> None:
    part, result = build(name), fit(name, repeated(), 100)
    assert part.optimum(result, result.top_flops).prediction.flags == ()
    assert part.optimum(result, 1000 * result.top_flops).prediction.flags[0].startswith("extrapolates: 1e+03 times")
    low, high = (part.optimum(result, k * result.top_flops).prediction for k in (1, 100))
    assert high.high / high.low > low.high / low.low


def test_points_weigh_what_they_are_told() -> None:
    points = changed(grid(sizes=4), 3, loss=3.5)
    ignored = [dataclasses.replace(p, weight=1e-9 if i == 3 else 1.0) for i, p in enumerate(points)]
    alpha = [fit_chinchilla(p, bootstrap=0, loss="least_squares").parameters["alpha"] for p in (points, ignored)]
    assert alpha[1] == pytest.approx(0.34, abs=1e-3)
    assert abs(alpha[0] - 0.34) > 0.01
