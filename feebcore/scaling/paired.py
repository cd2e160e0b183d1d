"""Two laws through runs in pairs: how much better the second is at a target, from few runs.

Two fits apart know their difference to percents, because each has its own five uncertain parameters. Runs of equal slot, seed and data order differ by
much less than their laws are uncertain. So the first law is a posterior, and the second is the first with four numbers that are fitted to the
ratios of the paired losses by penalized least squares:

    L2(N, D) = E + A N^-alpha exp(-alpha u - da ln(N / N0)) + B D^-beta exp(-beta v - db ln(D / D0))

u and v are logarithms of the efficiency of parameters and of data, da and db differences of exponents; N0 and D0 are the middle of the runs. The noise
is the scatter of the ratios themselves. Each law takes its own best size at its own FLOPs per token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from feebcore.scaling.checks import LEAST_CELLS
from feebcore.scaling.minimize import Array
from feebcore.scaling.points import NotIdentifiable, ParameterCount, Point
from feebcore.scaling.posterior import best_law, drawn_laws, fit_posterior, interval_of
from feebcore.scaling.projection import OUTLIER
from feebcore.scaling.runs import Runs, group_numbers
from feebcore.scaling.surface import Surfaces

DRAWS = 1000
EFFICIENCIES_DIFFER = 0.4
"""Standard deviation of u - v: the prior that what helps N helps D as well."""
EXPONENTS_DIFFER = 0.02
"""Standard deviation of da and of db."""
EFFICIENCY = 3.0  # of (u + v): only keeps the normal equations regular
EQUAL = 0.003
"""Relative difference of the loss below which two laws are called equal."""
FAR_EXPONENTS = 2 * EXPONENTS_DIFFER
MOVED = 2.5  # standard deviations
TOP_BUDGET = 1.5  # the dearest runs: up to this factor below the dearest
LONGEST_REACH = 100.0
"""Times the dearest runs; the calibration goes no further."""
LEAST_NOISE = 1e-6  # of a ratio; runs that are the same have none
FARTHEST = 5.0  # of ln N around the best size, where the best size of a law is looked for
NODES = 101
SLOPE_STEP = 0.1  # of ln C

Kind = Literal["better", "worse", "no difference", "cannot tell"]
CostOfToken = Callable[[Array], Array]
"""Training FLOPs per token at sizes N [n]."""


def six_n(size: Array) -> Array:
    return 6.0 * size


@dataclass(frozen=True)
class Pair:
    """One slot, trained by both sides."""

    name: str
    first: Point
    second: Point


@dataclass(frozen=True)
class Place:
    """Both laws at `flops`, each at its own best size. difference: ln(second loss / first loss) with its 95 % interval. multiplier: training FLOPs
    that the first needs for the second's loss over `flops`, by the slope of its frontier there. NaN: no interval. reach: over the dearest run."""

    flops: float
    reach: float
    first_loss: float
    second_loss: float
    first_size: float
    second_size: float
    difference: float
    low: float
    high: float
    multiplier: float
    multiplier_low: float
    multiplier_high: float

    @property
    def kind(self) -> Kind:
        """better, worse: of the second, where the interval excludes 0. no difference: the interval lies within ± EQUAL."""
        if self.low > 0 or self.high < 0:
            return "worse" if self.low > 0 else "better"
        return "no difference" if max(abs(self.low), abs(self.high)) < EQUAL else "cannot tell"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"kind": self.kind}


@dataclass(frozen=True)
class Crossover:
    """FLOPs at which the frontiers meet, with the 95 % interval; NaN: that end lies beyond what was looked at."""

    flops: float
    low: float
    high: float


@dataclass(frozen=True)
class LawComparison:
    """measured: in the middle of the measured range; target: at the FLOPs asked for; curve: in between and around, for figures.
    efficiency: u, v, da, db with their standard errors. ratios: ln(second loss / first loss) by pair, and as fitted. noise: standard deviation of a ratio,
    with `degrees` of freedom. crossover: only where both places are different and contradict each other. flags: 'code: sentence' each; law: parameters of
    the first law, law_flags what speaks against it."""

    num_pairs: int
    measured: Place
    target: Place
    curve: tuple[Place, ...]
    efficiency: dict[str, tuple[float, float]]
    ratios: dict[str, tuple[float, float]]
    noise: float
    degrees: float
    crossover: Crossover | None
    flags: tuple[str, ...]
    law: dict[str, float]
    law_flags: tuple[str, ...]

    @property
    def doubts(self) -> tuple[str, ...]:
        """The flags for which nothing is claimed of the target, whatever the interval says."""
        return tuple(flag for flag in self.flags if flag.startswith(("top_budget", "extrapolates")))

    @property
    def kind(self) -> Kind:
        """Of the target."""
        return "cannot tell" if self.doubts else self.target.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        places = {"measured": self.measured.to_dict(), "target": self.target.to_dict(), "curve": [place.to_dict() for place in self.curve]}
        return dataclasses.asdict(self) | places | {"kind": self.kind, "flags": list(self.flags), "law_flags": list(self.law_flags)}


def compare_pairs(
    pairs: Sequence[Pair],
    parameter_count: ParameterCount,
    target: float,
    costs: tuple[CostOfToken, CostOfToken] = (six_n, six_n),
    seed: int = 0,
    places: int = 0,
) -> LawComparison:
    """The second law against the first at `target` training FLOPs. costs: of the first and of the second. places: how many of `curve`.

    Without LEAST_CELLS distinct pairs there are no intervals. Raises NotIdentifiable where the first runs determine no law.
    """
    if not (math.isfinite(target) and target > 0):
        raise NotIdentifiable(f"target {target:g}: must be positive and finite")
    cells = _Cells.of(pairs, parameter_count)
    few = len(cells) < LEAST_CELLS
    fit = fit_posterior([pair.first for pair in pairs], parameter_count, 0 if few else DRAWS, seed, rollouts=False)
    law, laws = best_law(fit), drawn_laws(fit)
    best = _fit(cells, law)
    second, seconds = cells.second(law, best.theta), cells.second(laws, _draws(cells, laws, best, np.random.default_rng(seed)))
    top = float(cells.flops.max())

    def at(flops: float) -> Place:
        return _place(flops, flops / top, law, second, laws, seconds, costs)

    measured, there = at(float(np.exp(np.log(cells.flops).mean()))), at(target)
    low, high = float(cells.flops.min()), max(top, target)
    curve = [at(float(flops)) for flops in np.geomspace(low, high, places)] if places else []
    crossover = None
    if {measured.kind, there.kind} == {"better", "worse"}:  # a place where noise crosses 0 is no crossover
        crossover = _crossover(min(low, target), high * high / low, law, second, laws, seconds, costs)
    errors = np.sqrt(np.diag(best.covariance))
    fitted = second.ln_loss(cells.sizes[1], cells.tokens[1])[0] - law.ln_loss(cells.sizes[0], cells.tokens[0])[0]
    flags = _flags(cells, best, law, target, there.reach, costs, few)
    return LawComparison(
        num_pairs=len(cells),
        measured=measured,
        target=there,
        curve=tuple(curve),
        efficiency={name: (float(value), float(error)) for name, value, error in zip(("u", "v", "da", "db"), best.theta[0], errors, strict=True)},
        ratios={name: (float(seen), float(said)) for name, seen, said in zip(cells.names, cells.ratio, fitted, strict=True)},
        noise=best.noise,
        degrees=best.degrees,
        crossover=crossover,
        flags=tuple(flags),
        law=dict(fit.parameters),
        law_flags=fit.flags,
    )


@dataclass(frozen=True)
class _Cells:
    """Distinct pairs: sizes and tokens of both sides, ln ratio of the losses, FLOPs of the first [n]. Repeats of a cell are one."""

    names: tuple[str, ...]
    sizes: tuple[Array, Array]
    tokens: tuple[Array, Array]
    ratio: Array
    flops: Array

    @classmethod
    def of(cls, pairs: Sequence[Pair], parameter_count: ParameterCount) -> _Cells:
        if not pairs:
            raise NotIdentifiable("no run of one side has a partner on the other")
        groups = group_numbers([pair.first for pair in pairs], parameter_count)
        first = Runs.of([pair.first for pair in pairs], parameter_count)
        second = Runs.of([dataclasses.replace(pair.second, group=str(group)) for pair, group in zip(pairs, groups, strict=True)], parameter_count)
        flops = np.exp(np.bincount(groups, np.log([pair.first.flops or pair.first.flops_6nd(parameter_count) for pair in pairs])) / np.bincount(groups))
        return cls(first.names, (first.size, second.size), (first.tokens, second.tokens), np.log(second.loss / first.loss), flops)

    def __len__(self) -> int:
        return len(self.ratio)

    def take(self, rows: Array) -> _Cells:
        names = tuple(name for name, kept in zip(self.names, rows, strict=True) if kept)
        sizes, tokens = (tuple(values[rows] for values in both) for both in (self.sizes, self.tokens))
        return _Cells(names, sizes, tokens, self.ratio[rows], self.flops[rows])  # type: ignore[arg-type]

    @property
    def middle(self) -> tuple[float, float]:
        """ln N0 and ln D0."""
        return float(np.log(self.sizes[0]).mean()), float(np.log(self.tokens[0]).mean())

    def second(self, law: Surfaces, theta: Array) -> Surfaces:
        """The second law of each first one, from u, v, da, db [K,4]: a law of the same form."""
        u, v, da, db = theta.T
        n0, d0 = self.middle
        return Surfaces(law.floor, law.ln_a - law.alpha * u + da * n0, law.ln_b - law.beta * v + db * d0, law.alpha + da, law.beta + db, law.power)

    def gradient(self, law: Surfaces, theta: Array, size: Array, tokens: Array) -> Array:
        """Of the second law's ln L at sizes and tokens [n] by u, v, da, db: [K,n,4]."""
        made, (n0, d0) = self.second(law, theta), self.middle
        total = made.ln_loss(size, tokens)
        by_size = np.exp(made.ln_a[:, None] - made.alpha[:, None] * np.log(size) - total)
        by_tokens = np.exp(made.ln_b[:, None] - made.beta[:, None] * np.log(tokens) - total)
        alpha, beta = law.alpha[:, None], law.beta[:, None]
        return -np.stack([alpha * by_size, beta * by_tokens, (np.log(size) - n0) * by_size, (np.log(tokens) - d0) * by_tokens], -1)


@dataclass(frozen=True)
class _Fit:
    """theta [1,4] of the best law, its covariance, the standard deviation of a ratio and its degrees of freedom."""

    theta: Array
    covariance: Array
    noise: float
    degrees: float
    residuals: Array


_PRECISION = np.zeros((4, 4))
_PRECISION[:2, :2] = np.array([[1, -1], [-1, 1]]) / EFFICIENCIES_DIFFER**2 + np.ones((2, 2)) / EFFICIENCY**2
_PRECISION[2:, 2:] = np.eye(2) / EXPONENTS_DIFFER**2


def _solve(cells: _Cells, law: Surfaces, noise: float, theta: Array) -> Array:
    """u, v, da, db [K,4] of least penalized squares for each law, from the ratios and a noise."""
    first = law.ln_loss(cells.sizes[0], cells.tokens[0])
    penalty = noise**2 * _PRECISION
    for _ in range(8):
        residuals = cells.ratio - (cells.second(law, theta).ln_loss(cells.sizes[1], cells.tokens[1]) - first)
        slopes = cells.gradient(law, theta, cells.sizes[1], cells.tokens[1])
        moment = (slopes * residuals[..., None]).sum(1) - theta @ penalty
        step = np.linalg.solve(slopes.transpose(0, 2, 1) @ slopes + penalty, moment[..., None])[..., 0]
        theta = theta + np.clip(step, -1.0, 1.0)
    return theta


def _fit(cells: _Cells, law: Surfaces, noise: float | None = None) -> _Fit:
    """For one law. noise None: from the scatter of the ratios, whose degrees of freedom depend on it in turn."""
    found, theta = noise or 0.003, np.zeros((1, 4))
    for _ in range(1 if noise else 6):
        theta = _solve(cells, law, found, theta)
        slopes = cells.gradient(law, theta, cells.sizes[1], cells.tokens[1])[0]
        inverse = np.linalg.inv(slopes.T @ slopes + found**2 * _PRECISION)
        degrees = len(cells) - float(np.trace(inverse @ slopes.T @ slopes))
        fitted = cells.second(law, theta).ln_loss(cells.sizes[1], cells.tokens[1])[0] - law.ln_loss(cells.sizes[0], cells.tokens[0])[0]
        residuals = cells.ratio - fitted
        if noise is None:
            found = max(LEAST_NOISE, math.sqrt(float(residuals @ residuals) / max(1.0, degrees)))
    return _Fit(theta, found**2 * inverse, found, max(1.0, degrees), residuals)


def _draws(cells: _Cells, laws: Surfaces, best: _Fit, rng: np.random.Generator) -> Array:
    """u, v, da, db [K,4] for each drawn law: its own best ones and Student's noise."""
    number = len(laws.floor)
    if not number:
        return np.zeros((0, 4))
    own = _solve(cells, laws, best.noise, np.repeat(best.theta, number, 0))
    noise = rng.standard_normal((number, 4)) @ np.linalg.cholesky(best.covariance).T
    return np.asarray(own + noise * np.sqrt(best.degrees / rng.chisquare(best.degrees, number))[:, None])


def _frontier(laws: Surfaces, flops: float, cost: CostOfToken, center: float) -> tuple[Array, Array]:
    """Least ln L [K] for `flops`, and its N: the vertex of the parabola through the best node of a grid around `center` and its neighbors."""
    ln_size = math.log(center) + np.linspace(-FARTHEST, FARTHEST, NODES)
    size = np.exp(ln_size)
    values = laws.ln_loss(size, flops / cost(size))
    at = values.argmin(1).clip(1, NODES - 2)
    rows = np.arange(len(values))
    left, middle, right = (values[rows, at + i] for i in (-1, 0, 1))
    bend, tilt = left + right - 2 * middle, (right - left) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, -tilt / bend, 0.0).clip(-1, 1)
    return middle + tilt * shift + bend * shift**2 / 2, np.exp(ln_size[at] + shift * (ln_size[1] - ln_size[0]))


def _center(law: Surfaces, flops: float) -> float:
    return float(law.best_size([flops])[0, 0])


def _place(flops: float, reach: float, law: Surfaces, second: Surfaces, laws: Surfaces, seconds: Surfaces, costs: tuple[CostOfToken, CostOfToken]) -> Place:
    center = _center(law, flops)
    (own, size), (other, other_size) = _frontier(law, flops, costs[0], center), _frontier(second, flops, costs[1], center)
    difference = float(other[0] - own[0])
    differences, slopes = np.zeros(0), np.zeros(0)
    if len(laws.floor):
        differences = _frontier(seconds, flops, costs[1], center)[0] - _frontier(laws, flops, costs[0], center)[0]
        slopes = _slope(laws, flops, costs[0], center)
    low, high = interval_of(differences)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        drawn = interval_of(np.exp(differences / slopes))
        multiplier = float(np.exp(difference / _slope(law, flops, costs[0], center)[0]))
    losses = float(np.exp(own[0])), float(np.exp(other[0]))
    return Place(flops, reach, *losses, float(size[0]), float(other_size[0]), difference, low, high, multiplier, *drawn)


def _slope(laws: Surfaces, flops: float, cost: CostOfToken, center: float) -> Array:
    """d ln L / d ln C along the frontier [K]."""
    ends = [_frontier(laws, flops * math.exp(step), cost, center)[0] for step in (-SLOPE_STEP, SLOPE_STEP)]
    return np.asarray((ends[1] - ends[0]) / (2 * SLOPE_STEP))


def _crossover(
    low: float, high: float, law: Surfaces, second: Surfaces, laws: Surfaces, seconds: Surfaces, costs: tuple[CostOfToken, CostOfToken]
) -> Crossover | None:
    """Where the difference changes its sign between `low` and `high`, on a grid; of several places, the dearest."""
    ln_flops = np.linspace(math.log(low), math.log(high), 61)

    def roots(first: Surfaces, other: Surfaces) -> Array:
        columns = []
        for x in ln_flops:
            flops = math.exp(x)
            center = _center(law, flops)
            columns.append(_frontier(other, flops, costs[1], center)[0] - _frontier(first, flops, costs[0], center)[0])
        difference = np.stack(columns, 1)
        changes = difference[:, 1:] * difference[:, :-1] < 0
        last = changes.shape[1] - 1 - changes[:, ::-1].argmax(1)
        rows = np.arange(len(difference))
        before, after = difference[rows, last], difference[rows, last + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            where = ln_flops[last] + before / (before - after) * (ln_flops[1] - ln_flops[0])
        return np.where(changes.any(1), np.exp(where), np.nan)

    center, drawn = float(roots(law, second)[0]), roots(laws, seconds)
    return None if math.isnan(center) else Crossover(center, *interval_of(drawn))


def _flags(cells: _Cells, best: _Fit, law: Surfaces, target: float, reach: float, costs: tuple[CostOfToken, CostOfToken], few: bool) -> list[str]:
    flags = []
    if few:
        flags.append(f"few_pairs: {len(cells)} distinct pairs; below {LEAST_CELLS} there is no interval")
    for name, term, value in (("alpha", "N", best.theta[0, 2]), ("beta", "D", best.theta[0, 3])):
        if abs(value) > FAR_EXPONENTS:
            flags.append(
                f"exponents_differ: {name}, the exponent of {term}, differs by {value:+.3f}, more than {FAR_EXPONENTS:g}; at the target this is an extrapolation of the form"
            )
    if reach > LONGEST_REACH:
        flags.append(f"extrapolates: the target is {reach:.3g} times the dearest run; the intervals were checked to {LONGEST_REACH:g} times")
    far = np.abs(best.residuals) > OUTLIER * max(LEAST_NOISE, 1.4826 * float(np.median(np.abs(best.residuals))) * math.sqrt(len(cells) / best.degrees))
    if far.any() and not few:
        named = ", ".join(f"{name} ({100 * math.expm1(r):+.2f}%)" for name, r, is_far in zip(cells.names, best.residuals, far, strict=True) if is_far)
        flags.append(f"outliers: pairs more than {OUTLIER:g} robust standard deviations from the fit: {named}")
    return flags + ([] if few else _moved(cells, best, law, target, costs))


def _moved(cells: _Cells, best: _Fit, law: Surfaces, target: float, costs: tuple[CostOfToken, CostOfToken]) -> list[str]:
    """A flag where the pairs below the top budget alone say something else at the target."""
    below = cells.flops < cells.flops.max() / TOP_BUDGET
    if below.sum() < 5:
        return []
    center = _center(law, target)
    cheap = _fit(cells.take(below), law, best.noise)
    differences, variances = [], []
    for those, fit in ((cells, best), (cells.take(below), cheap)):
        made = those.second(law, fit.theta)
        loss, size = _frontier(made, target, costs[1], center)
        slope = those.gradient(law, fit.theta, size, target / costs[1](size))[0, 0]
        differences.append(float(loss[0]))
        variances.append(float(slope @ fit.covariance @ slope))
    spread = math.sqrt(max(variances[1] - variances[0], 0.0))
    moved = differences[1] - differences[0]
    if abs(moved) <= MOVED * max(spread, LEAST_NOISE):
        return []
    return [
        f"top_budget: without the dearest runs the difference at the target would be {100 * moved:+.2f}% of the loss away, {abs(moved) / spread:.1f} standard "
        "deviations; the ratios do not follow the form"
    ]
