"""Chinchilla's second approach: along each budget the loss against N has a minimum; the minima follow C^a.

For plots and as a second opinion: the parabola is biased even without noise (a wide or off-center grid, alpha other
than beta), so decisions come from the parametric fit. Akima interpolation in ln N, ln L with its argmin is the method of
Porian et al. 2024; the parabola in ln N that of Hoffmann et al. 2022, here robust and over the sizes nearest to the lowest loss.

Intervals are over the noise of runs, which the scatter of all curves around their parabolas gives, at least NOISE_FLOOR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from feebcore.scaling.checks import require_measured
from feebcore.scaling.minimize import Array
from feebcore.scaling.points import NotIdentifiable, ParameterCount, Point
from feebcore.scaling.projection import NOISE_FLOOR, OUTLIER, robust_scale, robust_weights
from feebcore.scaling.runs import Runs

Method = Literal["parabola", "akima"]
GRID = 25  # points per interval at which the Akima curve is evaluated
NEAREST = 7  # sizes around the lowest loss that a parabola is fitted to
FARTHEST = 20.0  # of ln N, from the sizes to a vertex that means anything
DRAWS = 200  # of noise, for an interval
LEAST_BEND = 0.001  # of the loss along a curve: less is the noise of runs


@dataclass(frozen=True)
class Minimum:
    """The best N along one budget. problem: '' when it is an interior minimum; else why it says nothing. ln_size_sd, ln_loss_sd: standard
    deviations under the noise of runs."""

    budget: float
    size: float
    tokens: float
    loss: float
    num_points: int
    problem: str = ""
    ln_size_sd: float = math.nan
    ln_loss_sd: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Allocation:
    """N_opt = coefficient * C^exponent over the interior minima; low, high: 95 % interval of the exponent."""

    exponent: float
    coefficient: float
    num_minima: int
    low: float = math.nan
    high: float = math.nan


def minimum(budget: float, size: Array, tokens: Array, loss: Array, method: Method = "parabola") -> Minimum:
    """The minimum over N of one isoFLOP curve; D at it is the minimum of the loss in ln D. Raises NotIdentifiable when a value is no measurement."""
    for name, values in (("N", size), ("D", tokens), ("loss", loss)):
        for row in np.flatnonzero(~(np.isfinite(values) & (values > 0))):
            raise NotIdentifiable(f"{budget:.3g} FLOPs, row {row + 1}: {name} is {values[row]:g}, and must be positive and finite")
    nothing = Minimum(budget, math.nan, math.nan, math.nan, len(size))
    if len(np.unique(size)) < 3:
        return replace(nothing, problem="fewer than 3 sizes")
    if np.ptp(np.log(loss)) < LEAST_BEND:
        return replace(nothing, problem=f"the losses differ by less than {100 * LEAST_BEND:g} %, so there is no minimum to see")
    vertex, value, problem = _vertex(np.log(size), loss, method)
    if math.isnan(vertex):
        return replace(nothing, problem=problem)
    best_tokens = _vertex(np.log(tokens), loss, method)[0] if len(np.unique(tokens)) >= 3 else math.nan
    best_tokens = math.log(budget / 6) - vertex if math.isnan(best_tokens) else best_tokens
    return replace(nothing, size=math.exp(vertex), tokens=math.exp(best_tokens), loss=value, problem=problem)


def minima(points: Sequence[Point], parameter_count: ParameterCount, method: Method = "parabola") -> list[Minimum]:
    """One a budget, lowest budget first; points without a budget are left out. Raises NotIdentifiable, naming the run that is no measurement."""
    require_measured(points, parameter_count)
    budgets = sorted({p.budget for p in points if p.budget > 0})
    curves = []
    for budget in budgets:
        runs = Runs.of([p for p in points if p.budget == budget], parameter_count)
        curves.append((runs.size, runs.tokens, runs.loss))
    noise = _noise([(np.log(size), loss) for size, _, loss in curves])
    found = []
    for budget, (size, tokens, loss) in zip(budgets, curves, strict=True):
        best = minimum(budget, size, tokens, loss, method)
        found.append(best if math.isnan(best.size) else _with_spread(best, np.log(size), loss, noise, method))
    return found


def allocate(minima: Sequence[Minimum]) -> Allocation:
    """A line through ln N_opt against ln C. Raises NotIdentifiable with fewer than 2 interior minima, or when N_opt
    would not grow with compute, or the loss there would not fall."""
    interior = [m for m in minima if not m.problem]
    if len(interior) < 2:
        raise NotIdentifiable(
            f"{len(interior)} of {len(minima)} budgets have an interior minimum; "
            + "; ".join(f"{m.budget:.3g} FLOPs: {m.problem}" for m in minima if m.problem)
        )
    compute = np.log([m.budget for m in interior])
    exponent, intercept = np.polyfit(compute, np.log([m.size for m in interior]), 1)
    if exponent <= 0:
        raise NotIdentifiable(f"the best size falls with compute (exponent {exponent:.2f}); the small budgets' curves are off, or too noisy")
    if np.polyfit(compute, np.log([m.loss for m in interior]), 1)[0] >= 0:
        raise NotIdentifiable("the lowest loss of a budget does not fall with compute; look for diverged or undertrained runs")
    off = compute - compute.mean()
    lever = off / (off**2).sum()
    spread = float(np.sqrt((lever**2 * np.array([m.ln_size_sd for m in interior]) ** 2).sum()))
    if len(interior) > 3:  # curves may scatter by more than noise explains
        around = np.log([m.size for m in interior]) - intercept - exponent * compute
        spread = max(spread, float(np.sqrt((around**2).sum() / (len(interior) - 2) / (off**2).sum())))
    return Allocation(float(exponent), float(np.exp(intercept)), len(interior), float(exponent - 2 * spread), float(exponent + 2 * spread))


def _vertex(x: Array, loss: Array, method: Method) -> tuple[float, float, str]:
    """x at the minimum, the loss there, and what is wrong with it."""
    order = np.argsort(x, kind="stable")
    x, loss = x[order], loss[order]
    if method == "akima":
        return _akima(x, np.log(loss))
    center = x.mean()
    near, weights = _near_and_weights(x, loss)
    curvature, slope, level = np.polyfit(x[near] - center, loss[near], 2, w=np.sqrt(weights))
    if curvature <= 0:
        return math.nan, math.nan, "the curve has no minimum (it bends down)"
    vertex = float(-slope / (2 * curvature) + center)
    value = float(level - slope**2 / (4 * curvature))
    if not x[0] <= vertex <= x[-1]:
        problem = f"the minimum lies beyond the {'smallest' if vertex < x[0] else 'largest'} size; add runs there"
        return (vertex, value, problem) if abs(vertex - center) < FARTHEST else (math.nan, math.nan, problem)
    return vertex, value, ""


def _near_and_weights(x: Array, loss: Array) -> tuple[NDArray[np.intp], Array]:
    """Indices of the NEAREST runs to the lowest loss, and what each counts in a parabola: less if it is far from it."""
    lowest = float(x[loss.argmin()])
    near = np.sort(np.argsort(np.abs(x - lowest), kind="stable")[: max(NEAREST, 3)])
    weights = np.ones(len(near))
    if len(np.unique(x[near])) < 5:
        return near, weights

    def deviations(weights: Array) -> Array:
        curve = np.polyfit(x[near] - lowest, loss[near], 2, w=np.sqrt(weights))
        return np.asarray(np.polyval(curve, x[near] - lowest) / loss[near] - 1)

    starts = [weights, *(1.0 - np.eye(len(near)))]  # one run left out finds the others even where it would have pulled the curve to itself
    weights = min(starts, key=lambda start: float(np.median(np.abs(deviations(start)))))
    for _ in range(5):
        off = deviations(weights)
        weights = robust_weights(off, robust_scale(off, 3), OUTLIER)
    return near, weights


def _noise(curves: Sequence[tuple[Array, Array]]) -> float:
    """Standard deviation of ln(loss) of a run, from the curves (x, loss) with more sizes than a parabola has coefficients."""
    squares, degrees = 0.0, 0.0
    for x, loss in curves:
        if len(np.unique(x)) < 4:
            continue
        near, weights = _near_and_weights(x, loss)
        curve = np.polyval(np.polyfit(x[near] - x.mean(), loss[near], 2, w=np.sqrt(weights)), x[near] - x.mean())
        squares += float((weights * (curve / loss[near] - 1) ** 2).sum())
        degrees += max(0.0, weights.sum() - 3)
    return max(NOISE_FLOOR, math.sqrt(squares / degrees)) if degrees >= 1 else NOISE_FLOOR


def _with_spread(best: Minimum, x: Array, loss: Array, noise: float, method: Method) -> Minimum:
    """The minimum with the standard deviations of its place and its loss over draws of noise."""
    order = np.argsort(x, kind="stable")
    x, loss = x[order], loss[order]
    drawn = loss * np.exp(noise * np.random.default_rng(0).standard_normal((DRAWS, len(x))))
    if method == "akima":
        place, ln_loss = _akima_draws(x, drawn)
    else:
        center = x.mean()
        near, weights = _near_and_weights(x, loss)
        vander = np.vander(x[near] - center, 3) * np.sqrt(weights)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            curvature, slope, level = np.linalg.pinv(vander) @ (drawn[:, near] * np.sqrt(weights)).T
            place = np.where(curvature > 0, center - slope / (2 * curvature), -np.inf)
            ln_loss = np.log(level - slope**2 / (4 * curvature))
    inside = (place > x[0]) & (place < x[-1])
    if inside.sum() < DRAWS / 2:
        return replace(best, problem=best.problem or "under the noise of runs the minimum often lies at an edge; add sizes")
    return replace(best, ln_size_sd=float(place[inside].std()), ln_loss_sd=float(ln_loss[inside].std()))


def _akima(x: Array, ln_loss: Array) -> tuple[float, float, str]:
    fine, curves = _akima_curves(x, ln_loss[None])
    best = int(curves[0].argmin())
    problem = ""
    if best in (0, len(fine) - 1):
        problem = f"the minimum lies at the {'smallest' if best == 0 else 'largest'} size; add runs beyond it"
    return float(fine[best]), float(np.exp(curves[0, best])), problem


def _akima_draws(x: Array, loss: Array) -> tuple[Array, Array]:
    fine, curves = _akima_curves(x, np.log(loss))
    return fine[curves.argmin(1)], curves.min(1)


def _akima_curves(x: Array, ln_loss: Array) -> tuple[Array, Array]:
    """A fine grid over sorted x [n] and the interpolated ln losses [K] there; repeats of one x are averaged."""
    from scipy.interpolate import Akima1DInterpolator

    distinct, number, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.stack([np.bincount(number, row) / counts for row in ln_loss])
    fine = np.linspace(distinct[0], distinct[-1], GRID * (len(distinct) - 1))
    return fine, np.asarray(Akima1DInterpolator(distinct, means, axis=1)(fine))
