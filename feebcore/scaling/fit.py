"""Chinchilla's third approach: L(N, D) = E + A / N^alpha + B / D^beta, fitted to ln L under a Huber loss.

Hoffmann et al. 2022, appendix D.2, as corrected by Besiroglu et al. 2024 (Epoch): the *sum* of Huber losses with
delta 1e-3 of LSE(a - alpha ln N, b - beta ln D, e) - ln L, many starts, an analytic gradient. Two things make it
well behaved: ln N and ln D are centered (the Hessian's condition falls by many decades), and the minimizer does not
see the objective's scale. alpha and beta are positive by construction.

A fit says when it should not be believed (`flags`). Points that cannot determine the law at all are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from feebcore.scaling import checks
from feebcore.scaling.minimize import Array, minimize
from feebcore.scaling.points import LawFit, ParameterCount, Point
from feebcore.scaling.posterior import CHINCHILLA, discounted, intervals_of, off_ridge
from feebcore.scaling.projection import robust_scale
from feebcore.scaling.rollouts import roll_out
from feebcore.scaling.runs import relative_weights

LossName = Literal["huber_log", "least_squares"]
"""Of the residual of ln(loss): Huber's with delta DELTA, or the square."""

DELTA = 1e-3  # Huber's, on the logarithm of the loss
NAMES = CHINCHILLA.names


@dataclass(frozen=True)
class Surface:
    """Logarithms of the points, centered. Parameters: (a, b, e, ln alpha, ln beta), where a and b are the logarithms
    of the two terms at the center of the points."""

    ln_size: Array
    ln_tokens: Array
    ln_loss: Array
    center: tuple[float, float]
    delta: float = DELTA

    @classmethod
    def of(cls, size: Array, tokens: Array, loss: Array, delta: float = DELTA) -> Surface:
        ln_size, ln_tokens = np.log(size), np.log(tokens)
        center = float(ln_size.mean()), float(ln_tokens.mean())
        return cls(ln_size - center[0], ln_tokens - center[1], np.log(loss), center, delta)

    def objective(self, parameters: Array, weights: Array) -> tuple[Array, Array]:
        """Sum of Huber losses / delta [K] and its gradient [K,5]. weights [K,n]: how often each point counts."""
        alpha, beta = np.exp(parameters[:, 3:4]), np.exp(parameters[:, 4:5])
        terms = np.empty((3, len(parameters), len(self.ln_loss)))
        terms[0] = parameters[:, 0:1] - alpha * self.ln_size
        terms[1] = parameters[:, 1:2] - beta * self.ln_tokens
        terms[2] = parameters[:, 2:3]
        largest = terms.max(0)
        terms -= largest
        np.exp(terms, out=terms)
        total = terms.sum(0)
        residual = largest + np.log(total) - self.ln_loss
        size = np.abs(residual)
        value = (weights * np.where(size <= self.delta, residual**2 / (2 * self.delta), size - self.delta / 2)).sum(1)
        slope = weights * np.clip(residual / self.delta, -1.0, 1.0) / total
        by_size, by_tokens = slope * terms[0], slope * terms[1]
        gradient = np.stack(
            [
                by_size.sum(1),
                by_tokens.sum(1),
                (slope * terms[2]).sum(1),
                -(by_size @ self.ln_size) * alpha[:, 0],
                -(by_tokens @ self.ln_tokens) * beta[:, 0],
            ],
            axis=1,
        )
        return value, gradient

    def minimize(self, starts: Array, weights: Array | None = None, scale: float = 1.0, max_iterations: int = 400) -> tuple[Array, Array]:
        """Parameters [K,5] and sums of Huber losses [K] reached from each start; weights [K,n] default to ones."""
        counts = np.ones((len(starts), len(self.ln_loss))) if weights is None else weights

        def scaled(parameters: Array, rows: NDArray[np.intp]) -> tuple[Array, Array]:
            value, gradient = self.objective(parameters, counts[rows])
            return value * scale, gradient * scale

        place, value = minimize(scaled, starts, max_iterations)
        return place, value * self.delta / scale

    def named(self, parameters: Array) -> Array:
        """Rows of (E, A, B, alpha, beta, a), a = beta / (alpha + beta): N_opt grows as C^a."""
        alpha, beta = np.exp(parameters[:, 3]), np.exp(parameters[:, 4])
        with np.errstate(over="ignore"):
            large = np.exp(parameters[:, 0] + alpha * self.center[0]), np.exp(parameters[:, 1] + beta * self.center[1])
        return np.stack([np.exp(parameters[:, 2]), *large, alpha, beta, beta / (alpha + beta)], axis=1)

    def starts(self) -> Array:
        """108 starts that reproduce the mean loss: shares of E, of the two terms, and exponents."""
        middle, lowest = float(np.exp(self.ln_loss.mean())), float(np.exp(self.ln_loss.min()))
        rows = []
        for share, split, alpha, beta in itertools.product((0.05, 0.4, 0.7, 0.9), (0.1, 0.5, 0.9), (0.2, 0.5, 1.0), (0.2, 0.5, 1.0)):
            rest = middle - share * lowest
            rows.append([np.log(split * rest), np.log((1 - split) * rest), np.log(share * lowest), np.log(alpha), np.log(beta)])
        return np.array(rows)

    def published_starts(self) -> Array:
        """The 4,500 starts of Hoffmann et al. (an exponent of 0 becomes 0.001)."""
        grid = itertools.product(np.arange(0, 30, 5), np.arange(0, 30, 5), np.arange(-1, 1.5, 0.5), np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5))
        return np.array([[a - x * self.center[0], b - y * self.center[1], e, np.log(max(x, 1e-3)), np.log(max(y, 1e-3))] for a, b, e, x, y in grid])


def fit_chinchilla(
    points: Sequence[Point],
    parameter_count: ParameterCount = "non_embedding",
    bootstrap: int = 200,
    seed: int = 0,
    published_grid: bool = False,
    loss: LossName = "huber_log",
) -> LawFit:
    """Fit E, A, B, alpha, beta to the loss in nats per token, N by `parameter_count`.

    bootstrap: resamples, each refitted from the best fit, for 95 % percentile intervals, at least 100, or 0 for none. Runs of one cell are
    resampled together, and below checks.LEAST_CELLS cells there are no intervals. Raises NotIdentifiable for fewer than 5 cells, N and D that move
    together (one budget, D = k N), or a loss that does not fall.
    """
    checks.require_draws(bootstrap)
    runs = checks.usable_runs(points, parameter_count)
    size = np.array([p.size(parameter_count) for p in points], dtype=np.float64)
    tokens = np.array([p.tokens for p in points], dtype=np.float64)
    ln_loss, weight = np.log([p.loss for p in points]), relative_weights(points)
    surface = Surface.of(size, tokens, np.exp(ln_loss), DELTA if loss == "huber_log" else 1e3)
    starts = surface.published_starts() if published_grid else surface.starts()
    reached, objective = surface.minimize(starts, np.tile(weight, (len(starts), 1)), max_iterations=600)
    best = int(objective.argmin())
    samples = np.zeros((0, len(NAMES)))
    if bootstrap and len(runs) >= checks.LEAST_CELLS:
        draws = np.random.default_rng(seed).integers(0, len(runs), (bootstrap, len(runs)))
        counts = np.stack([np.bincount(d, minlength=len(runs)) for d in draws]).astype(np.float64)
        refits, _ = surface.minimize(np.tile(reached[best], (bootstrap, 1)), counts[:, runs.group] * weight, max_iterations=200)
        samples = surface.named(refits)
    values = surface.named(reached[best : best + 1])
    law = CHINCHILLA.surfaces(values)
    checks.require_falling(law, runs)
    parameters = {name: float(v) for name, v in zip(NAMES, values[0], strict=True)}
    intervals = intervals_of(NAMES, samples)
    residual = law.ln_loss(size, tokens)[0] - ln_loss
    deviations = discounted(residual, runs, law)
    flags = checks.doubts(points, runs, parameters, intervals, residual, deviations, law)
    near = surface.named(reached[objective <= 1.01 * objective[best] + 1e-12])[:, NAMES.index("a")]
    if np.ptp(near) > checks.WIDEST_A:
        flags.append(f"several_minima: equally good fits have the exponent a from {near.min():.2f} to {near.max():.2f}")

    def without_the_dearest(cheap: list[Point]) -> Callable[[Array, Array], Array]:
        kept = np.isin(np.arange(len(points)), [i for i, p in enumerate(points) if any(p is q for q in cheap)])
        refit, _ = surface.minimize(reached[best : best + 1], (kept * weight)[None])
        return lambda size, tokens: CHINCHILLA.surfaces(surface.named(refit)).ln_loss(size, tokens)[0]

    return LawFit(
        form="chinchilla",
        parameters=parameters,
        intervals=intervals,
        flags=tuple(flags),
        objective=float(objective[best]),
        parameter_count=parameter_count,
        num_points=len(points),
        residuals=tuple(map(float, residual)),
        samples=tuple(tuple(map(float, row)) for row in samples),
        weights=tuple(map(float, weight)),
        scatter=robust_scale(residual, 5),
        top_flops=float(runs.flops.max()),
        outliers=checks.outlier_names(points, deviations, 5),
        rollouts=roll_out(
            checks.without_outliers(points, deviations, 5), parameter_count, without_the_dearest, lambda size, tokens: off_ridge(law, size, tokens)
        ),
    )
