"""Errors of predictions made as if the dearest runs were not known yet, and the intervals that hold them.

A bootstrap and a posterior know the noise of the runs. How wrong a law is beyond them only shows when runs come that were
predicted, so the estimator is run again without the top factor of 3.2 and of 10 of compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.points import LawFit, NotIdentifiable, ParameterCount, Point, Prediction, Rollout
from feebcore.scaling.projection import NOISE_FLOOR
from feebcore.scaling.runs import group_numbers

CUTS = (10**0.5, 10.0)
"""Factors of compute that are left out."""
LEAST_FITTED = 6  # distinct cells that must be left for a rollout

LEAST_SLOPE = 0.001  # of the loss per ln of reach, that no law is better than
MISFIT_OFF_RIDGE, MISFIT_BELOW_TOP = 0.002, 0.0007
"""Standard deviation of a law's own misfit, doubled where it is used: per ln^2 of N / N*, per ln of compute below the dearest run."""

Along = Callable[[Array, Array], Array]
"""A value [n] at sizes and tokens [n]."""


def roll_out(
    points: Sequence[Point], parameter_count: ParameterCount, fit: Callable[[list[Point]], Along], off_ridge: Along, least: int = LEAST_FITTED
) -> tuple[Rollout, ...]:
    """Every run that is left out and predicted; none where fewer than `least` cells are left below, or those determine no law.

    fit: from cheap points to ln(loss); off_ridge: ln(N / N*) by the law of all points.
    """
    flops = np.array([p.flops_6nd(parameter_count) for p in points])
    found: list[Rollout] = []
    for cut in CUTS:
        fitted = flops <= flops.max() / cut * 1.02  # a budget is met within a per cent or two
        cheap, dear = [p for p, kept in zip(points, fitted, strict=True) if kept], [p for p, kept in zip(points, fitted, strict=True) if not kept]
        if not cheap or len(set(group_numbers(cheap, parameter_count))) < least:
            continue
        size, tokens = np.array([float(p.size(parameter_count)) for p in dear]), np.array([p.tokens for p in dear])
        try:
            predicted = fit(cheap)(size, tokens)
        except NotIdentifiable:
            continue
        error = predicted - np.log([p.loss for p in dear])
        rows = zip(dear, flops[~fitted] / flops[fitted].max(), error, off_ridge(size, tokens), strict=True)
        found += [Rollout(p.name, float(reach), float(e), float(off), cut, p.loss) for p, reach, e, off in rows]
    return tuple(found)


def error_per_reach(fit: LawFit) -> float:
    """Root mean square of the rollouts' errors beyond the scatter of runs, per ln of reach, at least LEAST_SLOPE; NaN without rollouts.

    Runs count by reach, so that one just above the cheap ones does not decide, and less where they are off the ridge, as in the fit.
    """
    if not fit.rollouts:
        return float("nan")
    error, reach, off = np.array([(r.error, math.log(r.reach), r.off_ridge) for r in fit.rollouts]).T
    weight = 1.0 / (1.0 + (2.0 * MISFIT_OFF_RIDGE * off**2 / NOISE_FLOOR) ** 2)
    square = float((weight * (error**2 - _noise(fit) ** 2)).sum() / (weight * reach**2).sum())
    return max(LEAST_SLOPE, math.sqrt(max(0.0, square)))


def _noise(fit: LawFit) -> float:
    return max(NOISE_FLOOR, fit.scatter)


def stated(fit: LawFit, ln_loss: float, spread: float, flops: float, off_ridge: float = 0.0) -> Prediction:
    """A prediction with its 95 % interval for a new measurement:
    2 sqrt(spread^2 + (error per reach x ln reach)^2 + (misfit off the ridge)^2 + noise^2).

    spread: standard deviation of the fitted ln(loss), NaN where there is no interval. reach: flops over the dearest fitted run, at least 1. off_ridge:
    ln(N / N*). Flags say where the prediction goes beyond what rollouts checked.
    """
    reach = max(0.0, math.log(flops / fit.top_flops))
    slope = error_per_reach(fit) if fit.rollouts else LEAST_SLOPE
    half = 2.0 * math.sqrt(spread**2 + (slope * reach) ** 2 + (2.0 * MISFIT_OFF_RIDGE * off_ridge**2) ** 2 + _noise(fit) ** 2)
    with np.errstate(over="ignore"):
        loss, low, high = (float(v) for v in np.exp([ln_loss, ln_loss - half, ln_loss + half]))
    return Prediction(loss, low, high, beyond(fit, flops))


def widening(fit: LawFit, prediction: Prediction, flops: float) -> dict[str, float]:
    """What the rollouts add to the interval of a prediction at `flops` (6ND): error_per_reach, reach, and half the width of the interval in
    ln(loss) with the rollouts' errors and without; NaN where there is no interval."""
    reach, slope = max(0.0, math.log(flops / fit.top_flops)), error_per_reach(fit)
    half = math.log(prediction.high / prediction.loss)
    beyond_least = 0.0 if math.isnan(slope) else slope**2 - LEAST_SLOPE**2
    without = math.sqrt(max(0.0, half**2 - 4.0 * beyond_least * reach**2)) if math.isfinite(half) else math.nan
    return {"error_per_reach": slope, "reach": math.exp(reach), "half_width": half, "without_rollouts": without}


def beyond(fit: LawFit, flops: float) -> tuple[str, ...]:
    """A flag where `flops` are further above the fitted runs than any prediction that was checked."""
    reach, checked = flops / fit.top_flops, max((r.reach for r in fit.rollouts), default=1.0)
    if not reach > 1.05 * checked:
        return ()
    how = f"predictions were checked to {checked:.1f} times" if fit.rollouts else "no prediction was checked"
    return (f"extrapolates: {reach:.3g} times the FLOPs of the dearest fitted run; {how}",)
