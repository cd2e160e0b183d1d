"""Laws of N and D whose fit is a posterior: intervals that hold for few runs and for laws that are not exactly true.

The estimator is variable projection on a grid (projection.py). A law is a local description, so runs count less the further
they lie from the ridge of best sizes and the cheaper they are: the law's own misfit there is taken as
2 hypot(.002 ln^2(N / N*), .0007 ln(C_top / C)) of the loss. What a posterior cannot know, how wrong the form is further out, is
measured: the same estimator predicts the dearest runs from the cheaper ones (rollouts), and intervals hold those errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from feebcore.protocols import BuildContext
from feebcore.scaling import checks
from feebcore.scaling.minimize import Array
from feebcore.scaling.options import RolloutOptions
from feebcore.scaling.points import Law, LawFit, Optimum, ParameterCount, Point, Prediction
from feebcore.scaling.projection import NOISE_FLOOR, Columns, Posterior, Prior, Solution, fit_on_grid
from feebcore.scaling.rollouts import MISFIT_BELOW_TOP, MISFIT_OFF_RIDGE, roll_out, stated
from feebcore.scaling.runs import Runs
from feebcore.scaling.surface import Surfaces

LEVEL = (2.5, 97.5)  # percentiles of an interval


LARGEST = 115.0  # of a logarithm: three such factors can still be squared; exponents that are larger have no mass


@dataclass(frozen=True)
class Form:
    """A law that becomes linear: its names, the prior of its exponents, and how draws and parameters become surfaces.

    exponents(drawn [K,q]) gives alpha, beta and power [K]. named(surfaces) gives rows [K, len(names)]; surfaces(rows) is the way back.
    formula: for readers.
    """

    name: str
    names: tuple[str, ...]
    prior: Prior
    has_floor: bool
    exponents: Callable[[Array], tuple[Array, Array, Array]]
    named: Callable[[Surfaces], Array]
    surfaces: Callable[[Array], Surfaces]
    formula: str = ""

    def columns(self, size: Array, tokens: Array, loss: Array) -> Columns:
        """Terms relative to the measurements; N, D and loss in units of their geometric means, so that coefficients are of order one."""
        ln_size, ln_tokens, ln_loss = (np.log(v / _middle(v)) for v in (size, tokens, loss))

        def at(drawn: Array) -> tuple[Array, Array]:
            alpha, beta, power = self.exponents(drawn)
            terms = np.empty((len(drawn), 3 if self.has_floor else 2, len(loss)))
            terms[:] = (_exp_outer(1.0 / power, -ln_loss) * power[:, None])[:, None]
            terms[:, 0] *= _exp_outer(alpha, -ln_size)
            terms[:, 1] *= _exp_outer(beta, -ln_tokens)
            return terms, power

        return at

    def surfaces_of(self, drawn: Array, coefficients: Array, runs: Runs) -> Surfaces:
        """Exponents and coefficients in the units of `columns` of these runs as laws."""
        alpha, beta, power = self.exponents(drawn)
        unit = np.log(_middle(runs.loss)) / power
        with np.errstate(divide="ignore"):
            ln_a = unit + np.log(coefficients[:, 0]) + alpha * np.log(_middle(runs.size))
            ln_b = unit + np.log(coefficients[:, 1]) + beta * np.log(_middle(runs.tokens))
        return Surfaces(np.exp(unit) * coefficients[:, 2] if self.has_floor else np.zeros(len(drawn)), ln_a, ln_b, alpha, beta, power)


def _exp_outer(factors: Array, values: Array) -> Array:
    """exp(factors [K] x values [n]) [K,n]; the factors of a grid repeat, and exponentials are dear."""
    distinct, inverse = np.unique(factors, return_inverse=True)
    return np.asarray(np.exp(np.clip(np.outer(distinct, values), -LARGEST, LARGEST))[inverse])


def _middle(values: Array) -> float:
    return float(np.exp(np.log(values).mean()))


def _chinchilla_rows(surfaces: Surfaces) -> Array:
    with np.errstate(over="ignore"):
        large = np.exp(surfaces.ln_a), np.exp(surfaces.ln_b)
    return np.stack([surfaces.floor, *large, surfaces.alpha, surfaces.beta, surfaces.beta / (surfaces.alpha + surfaces.beta)], 1)


def _chinchilla_surfaces(rows: Array) -> Surfaces:
    with np.errstate(divide="ignore"):
        return Surfaces(rows[:, 0], np.log(rows[:, 1]), np.log(rows[:, 2]), rows[:, 3], rows[:, 4], np.ones(len(rows)))


CHINCHILLA = Form(
    "posterior",
    ("E", "A", "B", "alpha", "beta", "a"),
    Prior((0.38, 0.38)),
    True,
    lambda drawn: (drawn[:, 0], drawn[:, 1], np.ones(len(drawn))),
    _chinchilla_rows,
    _chinchilla_surfaces,
    "L = E + A / N^alpha + B / D^beta",
)
"""E + A / N^alpha + B / D^beta (Hoffmann et al. 2022)."""


def weigh(runs: Runs, best: Surfaces) -> Array:
    """The weights [n] of runs under a law, from its misfit away from the ridge of best sizes and below the dearest run."""
    off = off_ridge(best, runs.size, runs.tokens)
    below = np.log(runs.flops.max() / runs.flops)
    misfit = 2.0 * np.hypot(MISFIT_OFF_RIDGE * off**2, MISFIT_BELOW_TOP * below)
    return np.asarray(runs.weight / (1.0 + (misfit / NOISE_FLOOR) ** 2))


def discounted(residuals: Array, runs: Runs, best: Surfaces) -> Array:
    """Residuals [points] in units of what the law's misfit lets expect, so that a run far off the ridge is no outlier for a few percent."""
    return np.asarray(residuals * np.sqrt(weigh(runs, best) / runs.weight)[runs.group])


def off_ridge(best: Surfaces, size: ArrayLike, tokens: ArrayLike) -> Array:
    """ln(N / N*) [n] by the law `best` (K = 1); 0 where the law has no ridge, as without an A or a B."""
    size, tokens = np.asarray(size, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        off = np.log(size / best.best_size(6.0 * size * tokens)[0])
    return np.where(np.isfinite(off), off, 0.0)


def posterior_of(runs: Runs, form: Form, draws: int, seed: int = 0) -> tuple[Posterior, Surfaces, Surfaces]:
    """The fit, its best law (K = 1) and the drawn ones. Milliseconds; without checks, intervals of parameters or rollouts."""

    def weights(solution: Solution) -> Array:
        return weigh(runs, form.surfaces_of(solution.exponents[None], solution.coefficients[None], runs))

    columns = form.columns(runs.size, runs.tokens, runs.loss)
    posterior = fit_on_grid(columns, form.prior, len(runs), weights, draws, np.random.default_rng(seed))
    best = form.surfaces_of(posterior.best.exponents[None], posterior.best.coefficients[None], runs)
    return posterior, best, form.surfaces_of(posterior.exponents, posterior.coefficients, runs)


def fit_posterior(
    points: Sequence[Point], parameter_count: ParameterCount = "non_embedding", draws: int = 500, seed: int = 0, form: Form = CHINCHILLA, rollouts: bool = True
) -> LawFit:
    """Fit `form` to the loss in nats per token, N by `parameter_count`.

    draws: posterior draws behind the 95 % intervals, at least 100, or 0 for none; there are none below checks.LEAST_CELLS distinct (N, D).
    rollouts False leaves out the two refits by which predictions are checked. Raises NotIdentifiable.
    """
    checks.require_draws(draws)
    runs = checks.usable_runs(points, parameter_count, len(form.names) - 1)
    posterior, best, drawn = posterior_of(runs, form, draws if len(runs) >= checks.LEAST_CELLS else 0, seed)
    checks.require_falling(best, runs)
    values, samples = form.named(best)[0], form.named(drawn)
    intervals = intervals_of(form.names, samples)
    residuals = best.ln_loss([float(p.size(parameter_count)) for p in points], [p.tokens for p in points])[0] - np.log([p.loss for p in points])
    parameters = {name: float(v) for name, v in zip(form.names, values, strict=True)}
    deviations = discounted(residuals, runs, best)

    def predictor(cheap: list[Point]) -> Callable[[Array, Array], Array]:
        return lambda size, tokens: posterior_of(Runs.of(cheap, parameter_count), form, 0)[1].ln_loss(size, tokens)[0]

    return LawFit(
        form=form.name,
        parameters=parameters,
        intervals=intervals,
        flags=tuple(checks.doubts(points, runs, parameters, intervals, residuals, deviations, best)),
        objective=float((posterior.weights * posterior.residuals**2).sum()),
        parameter_count=parameter_count,
        num_points=len(points),
        residuals=tuple(map(float, residuals)),
        samples=tuple(tuple(map(float, row)) for row in samples),
        weights=tuple(map(float, posterior.weights[runs.group])),
        scatter=posterior.scale,
        top_flops=float(runs.flops.max()),
        outliers=checks.outlier_names(points, deviations, len(form.names) - 1),
        rollouts=roll_out(
            checks.without_outliers(points, deviations, len(form.names) - 1), parameter_count, predictor, lambda size, tokens: off_ridge(best, size, tokens)
        )
        if rollouts
        else (),
    )


def interval_of(values: Array) -> tuple[float, float]:
    """Where 95 % of the draws lie; NaN where there are none, or most of them have no finite value."""
    finite = values[np.isfinite(values)]
    if not len(finite) or len(finite) < len(values) / 2:
        return math.nan, math.nan
    low, high = np.percentile(finite, LEVEL)
    return float(low), float(high)


def spread_of(ln_losses: Array) -> float:
    """Standard deviation of drawn ln(loss), from their 95 % interval, so that a few wild resamples do not decide."""
    low, high = interval_of(ln_losses)
    return (high - low) / 4.0


def intervals_of(names: Sequence[str], samples: Array) -> dict[str, tuple[float, float]]:
    """95 % intervals by name, from rows of draws; none without draws."""
    return {name: interval_of(samples[:, i]) for i, name in enumerate(names)} if len(samples) else {}


def best_law(fit: LawFit, form: Form = CHINCHILLA) -> Surfaces:
    """The fitted law, K = 1."""
    return form.surfaces(np.array([list(fit.parameters.values())]))


def drawn_laws(fit: LawFit, form: Form = CHINCHILLA) -> Surfaces:
    """Its draws or resamples; `drawn_laws(fit).ln_loss(size, tokens)` is [K,n], with the covariances between runs that a planner needs."""
    return form.surfaces(fit.draws)


def predict_posterior(fit: LawFit, size: float, tokens: float, form: Form = CHINCHILLA) -> Prediction:
    """The loss at (N, D), N by the fit's parameter_count, with the interval that `stated` describes."""
    best = best_law(fit, form)
    spread = spread_of(drawn_laws(fit, form).ln_loss([size], [tokens])[:, 0])
    return stated(fit, float(best.ln_loss([size], [tokens])[0, 0]), spread, 6.0 * size * tokens, float(off_ridge(best, [size], [tokens])[0]))


def optimum_posterior(fit: LawFit, flops: float, form: Form = CHINCHILLA) -> Optimum:
    """The best allocation of 6 N D = flops, the loss there, and the 95 % interval of N."""
    best, drawn = best_law(fit, form), drawn_laws(fit, form)
    size = float(best.best_size([flops])[0, 0])
    tokens = flops / (6.0 * size)
    low, high = interval_of(drawn.best_size([flops])[:, 0])
    return Optimum(flops, size, tokens, predict_posterior(fit, size, tokens, form), low, high)


class GridLaw(Law):
    """A law part whose numerics are its `form`."""

    form: Form

    def __init__(self, config: RolloutOptions, context: BuildContext | None = None) -> None:
        self.rollouts = config.rollouts

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        return fit_posterior(points, parameter_count, bootstrap, seed, self.form, self.rollouts)

    def estimator(self) -> dict[str, str]:
        prior = self.form.prior
        return {
            "form": self.form.formula or self.form.name,
            "objective": f"Student likelihood of ln(predicted / measured), noise at least {100 * NOISE_FLOOR:g}%, runs far from the best sizes weigh less",
            "starts": "none: a grid over the exponents, the coefficients in closed form (variable projection)",
            "intervals": f"posterior draws; prior of each exponent log-normal around {', '.join(f'{c:g}' for c in dict.fromkeys(prior.center))}, width {prior.width:g}",
        }

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        return predict_posterior(fit, size, tokens, self.form)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        return optimum_posterior(fit, flops, self.form)
