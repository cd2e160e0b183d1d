"""Errors of predictions made as if the dearest runs were not known yet, and the intervals that hold them.

A bootstrap and a posterior know the noise of the runs. How wrong a law is beyond them only shows when runs come that were
predicted, so the estimator is run again without the top factor of 3.2 and of 10 of compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.points import LawFit, ParameterCount, Point, Prediction, Rollout
from feebcore.scaling.projection import NOISE_FLOOR
from feebcore.scaling.runs import group_numbers

CUTS = (10**0.5, 10.0)
"""Factors of compute that are left out."""
LEAST_FITTED = 6  # distinct cells that must be left for a rollout

Predictor = Callable[[Array, Array], Array]
"""ln(loss) [n] at sizes and tokens [n]."""


def roll_out(points: Sequence[Point], parameter_count: ParameterCount, fit: Callable[[list[Point]], Predictor]) -> tuple[Rollout, ...]:
    """Every run that is left out and predicted; none where too few cells are left below."""
    flops = np.array([p.flops_6nd(parameter_count) for p in points])
    found: list[Rollout] = []
    for cut in CUTS:
        fitted = flops <= flops.max() / cut * 1.02  # a budget is met within a per cent or two
        cheap, dear = [p for p, kept in zip(points, fitted, strict=True) if kept], [p for p, kept in zip(points, fitted, strict=True) if not kept]
        if not cheap or len(set(group_numbers(cheap, parameter_count))) < LEAST_FITTED:
            continue
        predicted = fit(cheap)(np.array([float(p.size(parameter_count)) for p in dear]), np.array([p.tokens for p in dear]))
        top = flops[fitted].max()
        found += [Rollout(p.name, float(c / top), float(ln - math.log(p.loss))) for p, c, ln in zip(dear, flops[~fitted], predicted, strict=True)]
    return tuple(found)


def error_per_reach(fit: LawFit) -> float:
    """Root mean square of the rollouts' errors per ln of reach; weighted by reach, so that a run just above the cheap ones does not decide."""
    if not fit.rollouts:
        return float("nan")
    errors, reach = np.array([r.error for r in fit.rollouts]), np.log([r.reach for r in fit.rollouts])
    return float(np.sqrt((errors**2).sum() / (reach**2).sum()))


def stated(fit: LawFit, ln_loss: float, spread: float, flops: float) -> Prediction:
    """A prediction with its 95 % interval for a new measurement: 2 sqrt(spread^2 + (error per reach x ln reach)^2 + noise^2).

    spread: standard deviation of the fitted ln(loss). reach: flops over the dearest fitted run, at least 1. Flags say where the prediction goes beyond
    what the rollouts checked.
    """
    reach = max(0.0, math.log(flops / fit.top_flops))
    slope = error_per_reach(fit)
    misfit = 0.0 if math.isnan(slope) else slope * reach
    half = 2.0 * math.sqrt(spread**2 + misfit**2 + max(NOISE_FLOOR, fit.scatter) ** 2)
    checked = max((r.reach for r in fit.rollouts), default=1.0)
    flags = []
    if reach > math.log(checked) + 0.05:
        how = f"predictions were checked to {checked:.1f} times" if fit.rollouts else "no prediction was checked"
        flags.append(f"extrapolates: {math.exp(reach):.3g} times the FLOPs of the dearest fitted run; {how}")
    return Prediction(math.exp(ln_loss), math.exp(ln_loss - half), math.exp(ln_loss + half), tuple(flags))
