"""Variable projection on a grid: laws that are linear in their coefficients once their exponents are known.

For every node of a grid over the exponents, the non-negative coefficients of least squares have a closed form (Golub and
Pereyra 1973), so the fit is a search over one or two numbers that has no starting point and cannot end in a local
minimum, and the nodes are the posterior: Student's likelihood (coefficients and scale integrated out), a log-normal
prior on the exponents.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feebcore.scaling.minimize import Array

NOISE_FLOOR = 0.002
"""The least standard deviation of ln(loss): seeds and evaluation differ by as much, however well the points agree."""
OUTLIER = 5.0
"""Robust standard deviations beyond which a run is named and counts less."""
PRIOR_REACH = 4.0  # standard deviations of the prior that the grid spans
NODES = {1: 201, 2: 25}  # an axis, by the number of axes
ZOOM_NODES = {1: 41, 2: 11}
HUBER = 1.5  # robust standard deviations, while the bulk of the points is looked for
SETTLED = 0.01  # change of a weight
DEPTH = 10.0  # log posterior below its maximum at which the grid ends

Columns = Callable[[Array], tuple[Array, Array]]
"""Of exponents [K,q]: terms [K,p,n] and targets [K], such that coefficients @ terms - target is about ln(predicted / measured)."""


@dataclass(frozen=True)
class Prior:
    """ln of each exponent ~ N(ln center, width^2)."""

    center: tuple[float, ...]
    width: float = 0.45

    def log_density(self, ln_exponents: Array) -> Array:
        return np.asarray(-0.5 * (((ln_exponents - np.log(self.center)) / self.width) ** 2).sum(1))

    def box(self) -> tuple[Array, Array]:
        middle = np.log(self.center)
        return middle - PRIOR_REACH * self.width, middle + PRIOR_REACH * self.width


@dataclass(frozen=True)
class Solution:
    """One set of exponents [q] with its coefficients [p]."""

    exponents: Array
    coefficients: Array


@dataclass(frozen=True)
class Posterior:
    """The most probable solution; draws of exponents [K,q] and coefficients [K,p] (K = 0 where there are too few points); scale:
    the robust standard deviation of ln(loss) of a point of weight 1; weights [n] that the points had, residuals [n]."""

    best: Solution
    exponents: Array
    coefficients: Array
    scale: float
    weights: Array
    residuals: Array


def robust_scale(deviations: Array, num_parameters: int) -> float:
    """Standard deviation from the median absolute deviation, freed of the fitted parameters; at least NOISE_FLOOR."""
    degrees = max(1, len(deviations) - num_parameters)
    return float(max(NOISE_FLOOR, 1.4826 * np.median(np.abs(deviations)) * np.sqrt(len(deviations) / degrees)))


def robust_weights(deviations: Array, scale: float, limit: float) -> Array:
    """1 up to `limit` scales; beyond, Huber's weights, or at OUTLIER ones that soon vanish."""
    ratio = np.minimum(1.0, limit * scale / np.maximum(np.abs(deviations), 1e-300))
    return np.asarray(ratio**4 if limit >= OUTLIER else ratio)


def project(terms: Array, target: Array, weights: Array) -> tuple[Array, Array]:
    """Non-negative least squares for K problems at once, weights [n] or [K,n]: coefficients [K,p] and weighted sums of squares [K].

    Each subset of the terms has its closed form; the best one without a negative coefficient is the solution.
    """
    gram, moment = _normal_equations(terms, target, weights)
    num_nodes, count = moment.shape
    total = target**2 * weights.sum(-1)
    best, coefficients = total.copy(), np.zeros((num_nodes, count))
    todo = np.arange(num_nodes)
    for chosen in itertools.chain.from_iterable(itertools.combinations(range(count), k) for k in range(count, 0, -1)):
        index = np.array(chosen)
        solved = np.linalg.solve(gram[np.ix_(todo, index, index)], moment[np.ix_(todo, index)][..., None])[..., 0]
        squares = total[todo] - (solved * moment[np.ix_(todo, index)]).sum(1)
        feasible = (solved >= 0).all(1)
        better = todo[feasible & (squares < best[todo])]
        row = np.zeros((len(todo), count))
        row[:, index] = solved
        coefficients[better], best[better] = row[np.searchsorted(todo, better)], squares[np.searchsorted(todo, better)]
        if len(chosen) == count:  # where no constraint binds, nothing is better
            todo = todo[~feasible]
        if not len(todo):
            break
    return coefficients, np.maximum(best, 0.0)


def _normal_equations(terms: Array, target: Array, weights: Array) -> tuple[Array, Array]:
    weighted = terms * weights[..., None, :]
    gram = weighted @ terms.transpose(0, 2, 1)
    gram += 1e-13 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(terms.shape[1])
    return gram, weighted.sum(2) * target[:, None]


def fit_on_grid(columns: Columns, prior: Prior, num_points: int, weigh: Callable[[Solution], Array], num_draws: int, rng: np.random.Generator) -> Posterior:
    """weigh: the weights [n] that the points deserve under a solution, robustness aside. num_draws 0: only the best solution."""
    low, high = prior.box()
    num_coefficients = columns(np.exp(low[None]))[0].shape[1]
    num_parameters = len(low) + num_coefficients
    search = _Search(columns, prior, max(1, num_points - num_parameters))
    weights, limit, best = np.ones(num_points), HUBER, search.best(np.ones(num_points), low, high, 4)
    for turn in range(12):
        residuals = search.residuals(best)
        trust = weigh(best)
        deviations = residuals * np.sqrt(trust)
        scale = robust_scale(deviations, num_parameters)
        ratio = robust_weights(deviations, scale, limit)
        if limit == OUTLIER:
            search.degrees = max(1, round(ratio.sum()) - num_parameters)
        settled = bool(np.abs(trust * ratio - weights).max() < SETTLED)
        weights = trust * ratio
        search.variance = search.variance_of(best, weights)
        if settled and limit == OUTLIER:
            break
        if settled or turn == 5:  # Huber's weights have found the bulk of the points; from there only those far from it count less
            limit = OUTLIER
        center = np.log(best.exponents)
        best = search.best(weights, center - 0.3, center + 0.3, 3)
    best = search.best(weights, np.log(best.exponents) - 0.1, np.log(best.exponents) + 0.1, 6)
    residuals = search.residuals(best)
    search.variance = search.variance_of(best, weights)
    draws = search.draws(weights, num_draws, rng) if num_draws else (np.zeros((0, len(low))), np.zeros((0, num_coefficients)))
    return Posterior(best, *draws, scale, weights, residuals)


def deviation(coefficients: Array, terms: Array, target: Array) -> Array:
    """ln(predicted / measured) [K,n]."""
    ratio = (coefficients[:, None] @ terms)[:, 0] / target[:, None]
    return np.asarray(target[:, None] * np.log(np.maximum(ratio, 1e-300)))


@dataclass
class _Search:
    """Grids over the logarithms of the exponents. degrees: of freedom, without the points that are outliers; variance: of ln(loss), in units of the
    weights."""

    columns: Columns
    prior: Prior
    degrees: int
    variance: float = NOISE_FLOOR**2

    def log_posterior(self, nodes: Array, weights: Array) -> tuple[Array, Array, Array]:
        """Of ln exponents [K,q]: log posterior [K], coefficients [K,p], and sums of squares [K] whose least is degrees x variance.

        The squares are of logarithms: relative deviations, for which the coefficients have their closed form, cannot fall below -1, so that a bad law of
        a high power would pass for a good one.
        """
        terms, target = self.columns(np.exp(nodes))
        coefficients, _ = project(terms, target, weights)
        deviations = deviation(coefficients, terms, target)
        for _ in range(2 if (target < 1).any() else 0):  # with a power, weights that make relative deviations of the term as large as logarithms
            relative = np.expm1(deviations / target[:, None])
            with np.errstate(divide="ignore", invalid="ignore"):
                ratio = np.where(np.abs(relative) > 1e-6, deviations / target[:, None] / relative, 1.0)
            coefficients, _ = project(terms, target, weights * ratio**2)
            deviations = deviation(coefficients, terms, target)
        squares = np.square(deviations) @ weights
        squares = squares - squares.min() + self.degrees * self.variance
        return -0.5 * (self.degrees + nodes.shape[1]) * np.log(squares) + self.prior.log_density(nodes), coefficients, squares

    def residuals(self, solution: Solution) -> Array:
        return deviation(solution.coefficients[None], *self.columns(solution.exponents[None]))[0]

    def variance_of(self, solution: Solution, weights: Array) -> float:
        """The variance by which the likelihood has the width of the estimator's own errors.

        Points have equal noise, at least NOISE_FLOOR; their weights are about bias. So errors are those of a sandwich: noise^2 G^-1 (J' W^2 J) G^-1 with
        G = J' W J, which the likelihood knows only as variance x G^-1; the ratio is averaged over the parameters. The noise is the weighted sum of
        squares over its expectation tr(W (I - H)) for a noise of 1.
        """
        ln_exponents, step = np.log(solution.exponents), 1e-4
        moved = np.concatenate([np.zeros((1, len(ln_exponents))), step * np.eye(len(ln_exponents))])
        terms, target = self.columns(np.exp(ln_exponents + moved))
        residuals = solution.coefficients @ terms - target[:, None]
        jacobian = np.concatenate([terms[0], (residuals[1:] - residuals[0]) / step])
        gram, squared = (jacobian * weights) @ jacobian.T, (jacobian * weights**2) @ jacobian.T
        ratio = np.linalg.pinv(gram, rcond=1e-14, hermitian=True) @ squared
        expected = float(weights.sum() - np.trace(ratio))
        noise = float(weights @ residuals[0] ** 2) / expected if expected > 1e-6 * weights.sum() else 0.0
        return max(NOISE_FLOOR**2, noise) * float(np.trace(ratio)) / len(gram)

    def best(self, weights: Array, low: Array, high: Array, levels: int) -> Solution:
        """The most probable exponents, by zooming in on the best node; a box that is too small moves along."""
        count = ZOOM_NODES[len(low)]
        for _ in range(levels):
            nodes = _grid(low, high, count)
            value, coefficients, _ = self.log_posterior(nodes, weights)
            at = int(value.argmax())
            reach = 1.5 * (high - low) / (count - 1)
            low, high = nodes[at] - reach, nodes[at] + reach
        return Solution(np.exp(nodes[at]), coefficients[at])

    def draws(self, weights: Array, number: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Exponents [K,q] from the grid, refined around its mass; coefficients [K,p] from their normal distribution given the exponents, non-negative."""
        low, high = self.prior.box()
        count = NODES[len(low)]
        for _ in range(3):
            nodes, step = _grid(low, high, count), (high - low) / (count - 1)
            value, _, _ = self.log_posterior(nodes, weights)
            mass = nodes[value > value.max() - DEPTH]
            low, high = mass.min(0) - step, mass.max(0) + step
        density = np.cumsum(np.exp(value - value.max()))
        quantiles = (np.arange(number) + rng.random(number)) / number
        chosen = np.searchsorted(density / density[-1], quantiles).clip(max=len(nodes) - 1)
        drawn = nodes[chosen] + step * rng.uniform(-0.5, 0.5, (number, len(low)))
        _, result, squares = self.log_posterior(drawn, weights)
        variance = squares / rng.chisquare(self.degrees + len(low), number)
        gram, moment = _normal_equations(*self.columns(np.exp(drawn)), weights)
        center = np.linalg.solve(gram, moment[..., None])[..., 0]
        spread = np.linalg.inv(np.linalg.cholesky(gram)).transpose(0, 2, 1) * np.sqrt(variance)[:, None, None]
        todo = np.arange(number)
        for _ in range(50):
            tried = center[todo] + (spread[todo] @ rng.standard_normal((len(todo), moment.shape[1], 1)))[..., 0]
            good = (tried >= 0).all(1)
            result[todo[good]] = tried[good]
            if not len(todo := todo[~good]):
                break
        return np.exp(drawn), result


def _grid(low: Array, high: Array, count: int) -> Array:
    return np.stack(np.meshgrid(*(np.linspace(a, b, count) for a, b in zip(low, high, strict=True)), indexing="ij"), -1).reshape(-1, len(low))
