"""The compute-optimal frontier: a power law with a floor through the minima of isoFLOP curves. C is 6 N D, as everywhere here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from feebcore.protocols import BuildContext
from feebcore.scaling import checks, isoflop
from feebcore.scaling.minimize import Array
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Optimum, ParameterCount, Point, Prediction
from feebcore.scaling.posterior import interval_of, intervals_of, spread_of
from feebcore.scaling.projection import NOISE_FLOOR, Posterior, Prior, Solution, fit_on_grid
from feebcore.scaling.rollouts import MISFIT_BELOW_TOP, roll_out, stated
from feebcore.scaling.runs import Runs, group_numbers

if TYPE_CHECKING:
    from feeb_evals.laws.frontier import FrontierConfig

NAMES = ("E", "A", "gamma", "k", "a")
PRIOR = Prior((0.19,))  # half of an exponent of N or D, as C grows with both
LEAST_MINIMA = 3
OFF_FRONTIER = math.log(2)  # of N / N_opt, from which the loss is not that of the frontier


class FrontierLaw(Law):
    def __init__(self, config: FrontierConfig, context: BuildContext | None = None) -> None:
        self.method = config.method

    def fit(self, points: Sequence[Point], parameter_count: ParameterCount, bootstrap: int, seed: int) -> LawFit:
        checks.require_draws(bootstrap)
        curves = isoflop.minima(points, parameter_count, self.method)
        if not curves:
            raise NotIdentifiable(
                "no runs share a budget, and the frontier goes through the minima of isoFLOP curves; give each run its budget, or use law posterior"
            )
        inside = [m for m in curves if not m.problem]
        if len(inside) < LEAST_MINIMA:
            why = "; ".join(f"{m.budget:.3g} FLOPs: {m.problem}" for m in curves if m.problem)
            raise NotIdentifiable(
                f"{len(inside)} of {len(curves)} budgets have an interior minimum, and the frontier needs {LEAST_MINIMA}" + (f"; {why}" if why else "")
            )
        allocation = isoflop.allocate(curves)
        minima = [_as_point(m) for m in inside]
        compute, loss = _compute(minima), np.array([m.loss for m in minima])
        distinct = len(set(group_numbers(points, parameter_count)))
        enough = distinct >= checks.LEAST_CELLS and len(minima) > LEAST_MINIMA
        rng = np.random.default_rng(seed)
        posterior = _posterior(compute, loss, bootstrap if enough else 0, rng)
        samples = _rows(posterior.exponents, posterior.coefficients, compute)
        pivot, level = float(np.log(compute).mean()), float(np.log([float(m.total) for m in minima]).mean())
        spread = (allocation.high - allocation.low) / 4
        exponents = np.append(rng.normal(allocation.exponent, spread, len(samples)), allocation.exponent)
        place = float(np.sqrt(np.mean([m.ln_size_sd**2 for m in inside]) / len(inside)))
        levels = np.append(rng.normal(level, place, len(samples)), level)
        rows = np.concatenate([samples, _rows(posterior.best.exponents[None], posterior.best.coefficients[None], compute)])
        rows = np.column_stack([rows, np.exp(levels - exponents * pivot), exponents])
        flags = [f"isoflop_edges: {len(curves) - len(inside)} of {len(curves)} budgets have no interior minimum"] if len(inside) < len(curves) else []
        if len(minima) < 5:
            flags.append(f"few_points: {len(minima)} minima for 3 parameters")
        if not enough:
            flags.append(f"no_intervals: {distinct} distinct runs and {len(minima)} minima; an interval needs {checks.LEAST_CELLS} and {LEAST_MINIMA + 1}")
        elif not bootstrap:
            flags.append("no_intervals: fitted without draws")
        flags += isoflop.outliers(points, parameter_count) + checks.outliers(minima, posterior.residuals, 3)
        flags += checks.units(points, Runs.of(points, parameter_count))
        parameters = {name: float(v) for name, v in zip(NAMES, rows[-1], strict=True)}

        def without_the_dearest(cheap: list[Point]) -> Callable[[Array, Array], Array]:
            below = _compute(cheap)
            best = _posterior(below, np.array([m.loss for m in cheap]), 0, rng).best
            row = _rows(best.exponents[None], best.coefficients[None], below)
            return lambda size, tokens: _ln_loss(row, 6 * size * tokens)[0]

        return LawFit(
            form="frontier",
            parameters=parameters,
            intervals=intervals_of(NAMES, rows[:-1]),
            flags=tuple(flags),
            objective=float((posterior.weights * posterior.residuals**2).sum()),
            parameter_count=parameter_count,
            num_points=len(points),
            residuals=tuple(map(float, posterior.residuals)),
            samples=tuple(tuple(map(float, row)) for row in rows[:-1]),
            weights=tuple(map(float, posterior.weights)),
            scatter=posterior.scale,
            top_flops=float(compute.max()),
            rollouts=roll_out(minima, "total", without_the_dearest, lambda size, tokens: np.zeros(len(size)), LEAST_MINIMA),
        )

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        """The loss at the best allocation of 6 N D; a flag says where N is not it."""
        flops = 6.0 * size * tokens
        best = np.array([list(fit.parameters.values())])
        spread = spread_of(_ln_loss(fit.draws, np.array([flops]))[:, 0])
        prediction = stated(fit, float(_ln_loss(best, np.array([flops]))[0, 0]), spread, flops)
        off = math.log(size / (fit.parameters["k"] * flops ** fit.parameters["a"]))
        if abs(off) <= OFF_FRONTIER:
            return prediction
        flag = f"off_frontier: N is {math.exp(off):.2g} times the best size of these FLOPs; the loss there is higher than the frontier's"
        return Prediction(prediction.loss, prediction.low, prediction.high, (*prediction.flags, flag))

    def estimator(self) -> dict[str, str]:
        return {
            "form": "L = E + A / C^gamma and N_opt = k C^a through the minima of isoFLOP curves",
            "objective": f"minima by {self.method}; Student likelihood of ln(predicted / measured)",
            "starts": "none: a grid over gamma, the coefficients in closed form",
            "intervals": "posterior draws of E, A and gamma; redrawn noise of the minima for k and a",
        }

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        size = fit.parameters["k"] * flops ** fit.parameters["a"]
        low, high = interval_of(fit.draws[:, 3] * flops ** fit.draws[:, 4])
        tokens = flops / (6.0 * size)
        return Optimum(flops, size, tokens, self.predict(fit, size, tokens), low, high)


def _as_point(minimum: isoflop.Minimum) -> Point:
    size = round(minimum.size)
    return Point(f"minimum of {minimum.budget:.3g} FLOPs", size, size, size, minimum.tokens, minimum.budget, minimum.loss, minimum.budget)


def _compute(minima: Sequence[Point]) -> Array:
    return np.array([m.flops_6nd("total") for m in minima])


def _posterior(compute: Array, loss: Array, draws: int, rng: np.random.Generator) -> Posterior:
    unit, ln_loss = np.log(compute / compute.max()), np.log(loss)

    def columns(exponents: Array) -> tuple[Array, Array]:
        return np.exp(np.stack([-exponents * unit, np.zeros((len(exponents), len(loss)))], 1) - ln_loss), np.ones(len(exponents))

    def weigh(solution: Solution) -> Array:
        return np.asarray(1.0 / (1.0 + (2.0 * MISFIT_BELOW_TOP * unit / NOISE_FLOOR) ** 2))

    return fit_on_grid(columns, PRIOR, len(loss), weigh, draws, rng)


def _rows(exponents: Array, coefficients: Array, compute: Array) -> Array:
    """(E, A, gamma) [K,3]."""
    return np.stack([coefficients[:, 1], coefficients[:, 0] * compute.max() ** exponents[:, 0], exponents[:, 0]], 1)


def _ln_loss(rows: Array, compute: Array) -> Array:
    return np.asarray(np.log(rows[:, 0:1] + rows[:, 1:2] * compute ** -rows[:, 2:3]))
