"""Muennighoff et al. 2023, equation 6: L = E + A / N'^alpha + B / D'^beta, with

    D' = U_D (1 + R_D (1 - exp(-(D / U_D - 1) / R_D))),    U_D the unique tokens,
    N' = U_N (1 + R_N (1 - exp(-(N / U_N - 1) / R_N))),    U_N = min(N, the best size for U_D tokens).

R_D and R_N are the epochs, and excess parameters, that repetition is worth at most. They and the law are fitted in turn: given them, the law is a
posterior in N' and D'; given the law, they have a grid of their own. Intervals of R hold the law at its best fit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from feebcore.protocols import BuildContext
from feebcore.scaling import checks
from feebcore.scaling.minimize import Array
from feebcore.scaling.options import RolloutOptions
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Optimum, ParameterCount, Point, Prediction
from feebcore.scaling.posterior import CHINCHILLA, discounted, interval_of, intervals_of, off_ridge, posterior_of, spread_of
from feebcore.scaling.projection import NOISE_FLOOR, Posterior, Prior
from feebcore.scaling.rollouts import roll_out, stated
from feebcore.scaling.runs import Runs
from feebcore.scaling.surface import Surfaces

NAMES = (*CHINCHILLA.names, "R_D", "R_N")
PRIOR = Prior((15.39, 5.31), 1.0)  # the values of the paper, within a factor of seven
NODES, TURNS = 41, 6
LEAST_REPEATING = 3  # runs over more than one epoch


class DataConstrainedLaw(Law):
    def __init__(self, config: RolloutOptions, context: BuildContext | None = None) -> None:
        self.rollouts = config.rollouts

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        checks.require_draws(bootstrap)
        runs = checks.usable_runs(points, parameter_count, len(NAMES) - 1)
        if (number := int((runs.tokens > 1.001 * runs.unique).sum())) < LEAST_REPEATING:
            raise NotIdentifiable(
                f"{number} distinct runs see tokens again, too few for their worth; state unique_tokens, add runs over several epochs, or use law posterior"
            )
        draws = bootstrap if len(runs) >= checks.LEAST_CELLS else 0
        posterior, best, drawn, worth, worths = _fit(runs, draws, seed)
        size, tokens = (np.array([float(v) for v in values]) for values in zip(*[(p.size(parameter_count), p.tokens) for p in points], strict=True))
        unique = runs.unique[runs.group]
        seen = effective(size, tokens, unique, best, worth[None])
        samples = np.column_stack([CHINCHILLA.named(drawn), worths])
        parameters = {name: float(v) for name, v in zip(NAMES, np.append(CHINCHILLA.named(best)[0], worth), strict=True)}
        intervals = intervals_of(NAMES, samples)
        residuals = best.ln_loss(seen[0][0], seen[1][0])[0] - np.log([p.loss for p in points])
        deviations = discounted(residuals, runs, best)

        def without_the_dearest(cheap: list[Point]) -> Callable[[Array, Array], Array]:
            below = Runs.of(cheap, parameter_count)
            _, law, _, own, _ = _fit(below, 0, seed)
            uniques = {(n, d): u for n, d, u in zip(size, tokens, unique, strict=True)}
            return lambda n, d: law.ln_loss(*(v[0] for v in effective(n, d, np.array([uniques[pair] for pair in zip(n, d, strict=True)]), law, own[None])))[0]

        return LawFit(
            form="data_constrained",
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
            outliers=checks.outlier_names(points, deviations, len(NAMES) - 1),
            rollouts=roll_out(
                checks.without_outliers(points, deviations, len(NAMES) - 1), parameter_count, without_the_dearest, lambda n, d: off_ridge(best, n, d)
            )
            if self.rollouts
            else (),
        )

    def estimator(self) -> dict[str, str]:
        return {
            "form": "L = E + A / N'^alpha + B / D'^beta in effective N' and D', which count repeated tokens and excess parameters less",
            "objective": "Student likelihood of ln(predicted / measured)",
            "starts": "none: grids over the exponents and over (R_D, R_N), in turn",
            "intervals": "posterior draws; those of R_D and R_N hold the law at its best fit",
        }

    def predict(self, fit: LawFit, size: float, tokens: float, unique_tokens: float | None = None) -> Prediction:
        """unique_tokens: distinct tokens among `tokens`; default: all."""
        unique = np.array([min(tokens, unique_tokens or tokens)])

        def ln_loss(rows: Array) -> Array:
            laws = CHINCHILLA.surfaces(rows[:, :-2])
            n, d = effective(np.array([size]), np.array([tokens]), unique, laws, rows[:, -2:])
            return laws.ln_loss(n, d)[:, 0]

        best = np.array([list(fit.parameters.values())])
        spread = spread_of(ln_loss(fit.draws))
        off = float(off_ridge(CHINCHILLA.surfaces(best[:, :-2]), [size], [tokens])[0])
        return stated(fit, float(ln_loss(best)[0]), spread, 6.0 * size * tokens, off)

    def predict_point(self, fit: LawFit, point: Point) -> Prediction:
        return self.predict(fit, point.size(fit.parameter_count), point.tokens, point.unique_tokens)

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        """With fresh tokens."""
        size = float(CHINCHILLA.surfaces(np.array([list(fit.parameters.values())[:-2]])).best_size([flops])[0, 0])
        low, high = interval_of(CHINCHILLA.surfaces(fit.draws[:, :-2]).best_size([flops])[:, 0])
        return Optimum(flops, size, flops / (6.0 * size), self.predict(fit, size, flops / (6.0 * size)), low, high)


def effective(size: Array, tokens: Array, unique: Array, laws: Surfaces, worth: Array) -> tuple[Array, Array]:
    """N' and D' [K,n] of runs [n] under laws [K] and (R_D, R_N) [K,2]."""
    ln_g = (np.log(laws.alpha / laws.beta) + laws.ln_a - laws.ln_b) / (laws.alpha + laws.beta)
    ratio = (laws.beta / laws.alpha)[:, None]
    best = np.exp(ln_g[:, None] * (1 + ratio) + ratio * np.log(unique))
    return _worth(size, np.minimum(size, best), worth[:, 1:2]), _worth(tokens, unique, worth[:, 0:1])


def _worth(seen: Array, unique: Array, most: Array) -> Array:
    repeats = np.maximum(0.0, seen / unique - 1.0)
    return np.asarray(unique * (1.0 + most * -np.expm1(-repeats / most)))


def _fit(runs: Runs, draws: int, seed: int) -> tuple[Posterior, Surfaces, Surfaces, Array, Array]:
    """The posterior of the law, its best and drawn laws, (R_D, R_N) and draws of them."""
    worth, seen = np.array(PRIOR.center), runs
    fresh = runs.tokens <= 1.001 * runs.unique
    start = runs if fresh.sum() < checks.LEAST_CELLS else runs.take(fresh)
    _, best, _ = posterior_of(start, CHINCHILLA, 0)
    checks.require_falling(best, start)
    for _ in range(TURNS):
        worth = _grid_of_worths(runs, best)[0]
        n, d = effective(runs.size, runs.tokens, runs.unique, best, worth[None])
        seen = dataclasses.replace(runs, size=n[0], tokens=d[0])
        _, best, _ = posterior_of(seen, CHINCHILLA, 0)
        checks.require_falling(best, seen)
    posterior, best, drawn = posterior_of(seen, CHINCHILLA, draws, seed)
    worth, nodes, mass = _grid_of_worths(runs, best)
    rng = np.random.default_rng(seed)
    step = np.ptp(np.log(nodes), axis=0) / (NODES - 1)
    worths = nodes[rng.choice(len(nodes), draws, p=mass)] * np.exp(step * rng.uniform(-0.5, 0.5, (draws, 2)))
    return posterior, best, drawn, worth, worths


def _grid_of_worths(runs: Runs, best: Surfaces) -> tuple[Array, Array, Array]:
    """The most probable (R_D, R_N) under the law `best`, the nodes [K,2] and their mass."""
    low, high = PRIOR.box()
    axes = [np.linspace(a, b, NODES) for a, b in zip(low, high, strict=True)]
    nodes = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    one = Surfaces(*(np.repeat(getattr(best, field.name), len(nodes)) for field in dataclasses.fields(best)))
    n, d = effective(runs.size, runs.tokens, runs.unique, one, np.exp(nodes))
    deviations = one.ln_loss(n, d) - np.log(runs.loss)
    degrees = max(1, len(runs) - len(NAMES) + 1)
    squares = (runs.weight * np.minimum(deviations**2, (10 * np.median(np.abs(deviations), axis=1, keepdims=True) + 10 * NOISE_FLOOR) ** 2)).sum(1)
    variance = max(NOISE_FLOOR**2, float(squares.min()) / degrees)
    value = -0.5 * squares / variance + PRIOR.log_density(nodes)
    mass = np.exp(value - value.max())
    return np.exp(nodes[int(value.argmax())]), np.exp(nodes), mass / mass.sum()
