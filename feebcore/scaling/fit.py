"""Chinchilla's third approach: L(N, D) = E + A / N^alpha + B / D^beta, fitted to ln L under a Huber loss.

Hoffmann et al. 2022, appendix D.2, as corrected by Besiroglu et al. 2024 (Epoch): the *sum* of Huber losses with
delta 1e-3 of LSE(a - alpha ln N, b - beta ln D, e) - ln L, many starts, an analytic gradient. Two things make it
well behaved: ln N and ln D are centered (the Hessian's condition falls by many decades), and the minimizer does not
see the objective's scale. alpha and beta are positive by construction.

A fit says when it should not be believed (`flags`). Points that cannot determine the law at all are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feebcore.scaling.minimize import Array, minimize
from feebcore.scaling.points import LawFit, NotIdentifiable, ParameterCount, Point, Prediction

DELTA = 1e-3  # Huber's, on the logarithm of the loss
NAMES = ("E", "A", "B", "alpha", "beta", "a")
LEVEL = (2.5, 97.5)  # percentiles of an interval
COLLINEAR = 0.995  # |correlation of ln N and ln D| from which the two terms are one
WIDEST_A = 0.1  # interval of the exponent of compute, wider than which it is not identified


@dataclass(frozen=True)
class Surface:
    """Logarithms of the points, centered. Parameters: (a, b, e, ln alpha, ln beta), where a and b are the logarithms
    of the two terms at the center of the points."""

    ln_size: Array
    ln_tokens: Array
    ln_loss: Array
    center: tuple[float, float]

    @classmethod
    def of(cls, size: Array, tokens: Array, loss: Array) -> Surface:
        ln_size, ln_tokens = np.log(size), np.log(tokens)
        center = float(ln_size.mean()), float(ln_tokens.mean())
        return cls(ln_size - center[0], ln_tokens - center[1], np.log(loss), center)

    def objective(self, parameters: Array, weights: Array) -> tuple[Array, Array]:
        """Sum of Huber losses / DELTA [K] and its gradient [K,5]. weights [K,n]: how often each point counts."""
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
        value = (weights * np.where(size <= DELTA, residual**2 / (2 * DELTA), size - DELTA / 2)).sum(1)
        slope = weights * np.clip(residual / DELTA, -1.0, 1.0) / total
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
        return place, value * DELTA / scale

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
    points: Sequence[Point], parameter_count: ParameterCount = "non_embedding", bootstrap: int = 200, seed: int = 0, published_grid: bool = False
) -> LawFit:
    """Fit E, A, B, alpha, beta to the loss in nats per token, N by `parameter_count`.

    bootstrap: resamples of the points, each refitted from the best fit, for 95 % percentile intervals; 0: none.
    Raises NotIdentifiable for fewer than 5 points, or N and D that move together (one budget, D = k N).
    """
    size = np.array([p.size(parameter_count) for p in points], dtype=np.float64)
    tokens = np.array([p.tokens for p in points], dtype=np.float64)
    loss = np.array([p.loss for p in points], dtype=np.float64)
    _refuse(size, tokens, loss)
    surface = Surface.of(size, tokens, loss)
    reached, objective = surface.minimize(surface.published_starts() if published_grid else surface.starts(), max_iterations=600)
    best = int(objective.argmin())
    rng = np.random.default_rng(seed)
    samples = np.zeros((0, len(NAMES)))
    if bootstrap:
        draws = rng.integers(0, len(points), (bootstrap, len(points)))
        weights = np.stack([np.bincount(d, minlength=len(points)) for d in draws]).astype(np.float64)
        refits, _ = surface.minimize(np.tile(reached[best], (bootstrap, 1)), weights, max_iterations=200)
        samples = surface.named(refits)
    values = surface.named(reached[best : best + 1])[0]
    ends = np.percentile(samples, LEVEL, axis=0) if bootstrap else np.full((2, len(NAMES)), np.nan)
    intervals = {name: (float(ends[0, i]), float(ends[1, i])) for i, name in enumerate(NAMES)} if bootstrap else {}
    residual = np.log(_surface_at(values[None], size, tokens)[0] / loss)
    flags = _flags(size, tokens, loss, values, intervals, residual)
    near = surface.named(reached[objective <= 1.01 * objective[best] + 1e-12])[:, NAMES.index("a")]
    if np.ptp(near) > WIDEST_A:
        flags.append(f"several_minima: equally good fits have the exponent a from {near.min():.2f} to {near.max():.2f}")
    return LawFit(
        form="chinchilla",
        parameters={name: float(v) for name, v in zip(NAMES, values, strict=True)},
        intervals=intervals,
        flags=tuple(flags),
        objective=float(objective[best]),
        parameter_count=parameter_count,
        num_points=len(points),
        residuals=tuple(map(float, residual)),
        samples=tuple(tuple(map(float, row)) for row in samples),
    )


def predict_chinchilla(fit: LawFit, size: float, tokens: float) -> Prediction:
    """The loss at (N, D), N by the fit's parameter_count.

    The interval is that of a new measurement: 2.5 to 97.5 % over bootstrap refits, each with a normal residual of the
    fit's own scatter (n - 5 degrees of freedom) on the logarithm. Without a bootstrap it is NaN.
    """
    values = np.array([[fit.parameters[name] for name in NAMES]])
    loss = float(_surface_at(values, np.array([size]), np.array([tokens]))[0, 0])
    if not fit.samples:
        return Prediction(loss, float("nan"), float("nan"))
    drawn = _surface_at(np.array(fit.samples), np.array([size]), np.array([tokens]))[:, 0]
    scatter = scatter_of(fit)
    noise = np.random.default_rng(0).normal(0.0, scatter, (50, 1))
    low, high = np.nanpercentile(drawn * np.exp(noise), LEVEL)
    return Prediction(loss, float(low), float(high))


def scatter_of(fit: LawFit) -> float:
    """Standard deviation of ln(measured / predicted) with 5 parameters taken off the degrees of freedom."""
    return float(np.sqrt(np.sum(np.square(fit.residuals)) / max(1, fit.num_points - 5)))


def optimum(fit: LawFit, flops: float) -> tuple[float, float]:
    """(N, D) of least loss under 6 N D = flops (Hoffmann et al. 2022, eq. 4): N = G (C/6)^a, D = (C/6)^(1-a) / G."""
    p = fit.parameters
    ratio = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1.0 / (p["alpha"] + p["beta"]))
    return ratio * (flops / 6.0) ** p["a"], (flops / 6.0) ** (1.0 - p["a"]) / ratio


def _surface_at(values: Array, size: Array, tokens: Array) -> Array:
    """L [K,n] for rows of named parameters [K,6] at points [n]; through logarithms, so that a huge A does not overflow."""
    with np.errstate(divide="ignore", over="ignore"):
        by_size = np.exp(np.log(values[:, 1:2]) - values[:, 3:4] * np.log(size))
        by_tokens = np.exp(np.log(values[:, 2:3]) - values[:, 4:5] * np.log(tokens))
    return values[:, 0:1] + by_size + by_tokens


def _refuse(size: Array, tokens: Array, loss: Array) -> None:
    if not (np.isfinite(loss).all() and (loss > 0).all() and (size > 0).all() and (tokens > 0).all()):
        raise NotIdentifiable("every point needs a positive finite size, token count and loss; exclude diverged runs")
    if len(loss) < 5:
        raise NotIdentifiable(f"{len(loss)} points cannot determine 5 parameters; train at least 9 runs over 3 budgets")
    if len(np.unique(size)) < 2 or len(np.unique(tokens)) < 2:
        raise NotIdentifiable("all points have one size or one token count; vary both")
    together = correlation(size, tokens)
    if abs(together) > COLLINEAR:
        how = "one budget" if together < 0 else "D in proportion to N"
        raise NotIdentifiable(f"ln N and ln D move together (correlation {together:.4f}: {how}), so their terms cannot be told apart; vary D / N at every size")


def correlation(size: Array, tokens: Array) -> float:
    return float(np.corrcoef(np.log(size), np.log(tokens))[0, 1])


def _flags(size: Array, tokens: Array, loss: Array, values: Array, intervals: dict[str, tuple[float, float]], residual: Array) -> list[str]:
    """Reasons not to believe the parameters (a prediction nearby may still be good)."""
    flags = []
    parameter = dict(zip(NAMES, values, strict=True))
    if len(loss) < 15:
        flags.append(f"few_points: {len(loss)} points for 5 parameters leave {len(loss) - 5} degree{'' if len(loss) == 6 else 's'} of freedom")
    decades = float(np.log10(size.max() / size.min()))
    if len(np.unique(size)) < 4 or decades < 1.5:
        flags.append(f"narrow_sizes: {len(np.unique(size))} sizes over {decades:.1f} decades of N; 4 over 1.5 are the least for the exponents")
    together = correlation(size, tokens)
    if abs(together) > 0.95:
        flags.append(f"nearly_collinear: ln N and ln D have correlation {together:.2f}")
    if parameter["E"] < 0.01 * loss.min():
        flags.append(f"E_at_bound: E went to 0 ({parameter['E']:.2g}); the points do not show a floor")
    elif parameter["E"] > 0.99 * loss.min():
        flags.append(f"E_at_bound: E went to the lowest loss ({parameter['E']:.3f})")
    for name in ("alpha", "beta"):
        if not 0.02 < parameter[name] < 2.0:
            flags.append(f"{name}_extreme: {name} = {parameter[name]:.3g} is outside what scaling laws show")
    if intervals:
        low, high = intervals["a"]
        if high - low > WIDEST_A:
            flags.append(f"not_identified: the 95% interval of a, {low:.2f} to {high:.2f}, is wider than {WIDEST_A}")
        if intervals["E"][0] < 0.01 * loss.min() <= parameter["E"]:
            flags.append("E_not_identified: resampled fits reach E = 0")
    else:
        flags.append("no_intervals: fitted without a bootstrap")
    usual = float(np.quantile(np.abs(residual), 0.9))
    if usual > 0.03:
        flags.append(f"poor_fit: a tenth of the points are more than {100 * usual:.1f} % away from the law")
    return flags
