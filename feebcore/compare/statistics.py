"""Paired statistics of a comparison: pure functions of numbers. NumPy and SciPy only.

A difference is the variant's bits per byte minus the baseline's under the same seed: negative where the variant is better.
With few seeds the interval is the paired t interval. It assumes that the differences are independent draws of one roughly
normal distribution, so it speaks of new seeds of these recipes on this data, and of nothing else.

Several variants against one baseline are corrected by Holm's step-down procedure (Holm 1979). An interval is given at the
level at which Holm's procedure tested that variant, so that it excludes 0 exactly when the variant is called different.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHA = 0.05
POWER = 0.8
FEWEST_FOR_FLIPS = 6
"""Pairs from which a sign-flip p can be below 5 %: with n pairs the smallest one is 2 / 2^n."""

EXACT_UP_TO = 16
FLIPS = 100_000
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Paired:
    """A paired difference. low, high: the t interval at confidence 1 - alpha. sd: of the differences. p: two-sided, of the
    paired t test; p_flips: of the sign-flip permutation test, None with too few pairs."""

    mean: float
    low: float
    high: float
    alpha: float
    sd: float
    num_pairs: int
    p: float
    p_flips: float | None = None

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.num_pairs)


def paired(differences: Sequence[float], alpha: float = ALPHA) -> Paired:
    """Mean, t interval and p of the differences. Raises ValueError for fewer than 2, or one that is not finite.

    Differences that are all 0 have p 1. Where they are all the same other number, they tell nothing of the scatter: p is
    then that of the signs alone.
    """
    from scipy import special

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"a paired interval needs at least 2 finite differences, not {values.tolist()}")
    n, mean, sd = len(values), float(values.mean()), float(values.std(ddof=1))
    flips = sign_flip_p(values) if n >= FEWEST_FOR_FLIPS else None
    if sd <= 1e-12 * abs(mean) or sd == 0.0:
        return Paired(mean, mean, mean, alpha, 0.0, n, 1.0 if mean == 0.0 else 2.0 / 2**n, flips)
    error = sd / math.sqrt(n)
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * error
    p = 2.0 * float(special.stdtr(n - 1, -abs(mean) / error))
    return Paired(mean, mean - half, mean + half, alpha, sd, n, p, flips)


def sign_flip_p(differences: Sequence[float] | Array) -> float:
    """Share of sign patterns whose mean is at least as far from 0 as the one seen: exact up to 16 pairs, beyond that over
    100,000 drawn patterns (Phipson and Smyth 2010: the one seen counts too). It assumes symmetry about 0, no distribution."""
    values = np.asarray(differences, dtype=np.float64)
    n, seen = len(values), abs(float(values.sum())) * (1 - 1e-12)
    if n <= EXACT_UP_TO:
        patterns = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
        return float((np.abs(patterns @ values) >= seen).mean())
    signs = np.random.default_rng(0).choice((1.0, -1.0), size=(FLIPS, n))
    return float((1 + (np.abs(signs @ values) >= seen).sum()) / (FLIPS + 1))


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> tuple[list[float], list[float]]:
    """Adjusted p values, and the level that each hypothesis was tested at.

    In order of p, the k-th smallest of m is tested at alpha / (m - k + 1); once one is not rejected, that level stays for
    the rest. An adjusted p is below alpha exactly when the hypothesis is rejected.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, levels = [0.0] * len(p_values), [alpha] * len(p_values)
    highest, level, going = 0.0, alpha, True
    for rank, i in enumerate(order):
        left = len(p_values) - rank
        highest = max(highest, min(1.0, left * p_values[i]))
        level = alpha / left if going else level
        adjusted[i], levels[i] = highest, level
        going = going and p_values[i] <= level
    return adjusted, levels


def power_of(effect: float, sd: float, num_pairs: int, alpha: float = ALPHA) -> float:
    """Chance that the paired t test calls a true difference of `effect` different; sd: of the differences."""
    from scipy import special

    if num_pairs < 2:
        return 0.0
    if sd == 0.0:
        return 1.0
    shift, edge = abs(effect) / sd * math.sqrt(num_pairs), float(special.stdtrit(num_pairs - 1, 1 - alpha / 2))
    probability = 1.0 - float(special.nctdtr(num_pairs - 1, shift, edge) - special.nctdtr(num_pairs - 1, shift, -edge))
    return min(1.0, probability) if math.isfinite(probability) else 1.0  # far beyond the edge SciPy's tail is nan


def seeds_needed(effect: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Fewest pairs that find a true difference of `effect` with this power; None beyond 10,000."""
    from scipy import special

    if effect <= 0:
        raise ValueError(f"effect {effect} must be above 0")
    near = ((special.ndtri(1 - alpha / 2) + special.ndtri(power)) * sd / effect) ** 2  # of the normal test: a few too few
    if near > MOST_SEEDS:
        return None
    n = max(2, math.ceil(near))
    while power_of(effect, sd, n, alpha) < power:
        n += 1
    while n > 2 and power_of(effect, sd, n - 1, alpha) >= power:
        n -= 1
    return n


def smallest_effect(sd: float, num_pairs: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """The true difference that so many pairs find with this power."""
    from scipy.optimize import brentq

    if sd == 0.0:
        return 0.0
    top = sd
    while power_of(top, sd, num_pairs, alpha) < power:
        top *= 2
    return float(brentq(lambda effect: power_of(effect, sd, num_pairs, alpha) - power, 0.0, top))


def sd_at_most(sd: float, num_pairs: int, confidence: float = 0.8) -> float:
    """What the true standard deviation is below with this confidence, as n pairs show `sd` (chi-square)."""
    from scipy import special

    return sd * math.sqrt((num_pairs - 1) / float(special.chdtri(num_pairs - 1, confidence)))


# --- all variants of a comparison -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One variant against the baseline. paired: over the seeds in which both were measured, its interval at the level that
    Holm's procedure tested it at; None with fewer than 2. p: adjusted by Holm. low_95, high_95: of this variant alone.
    diverged, baseline_diverged: how many runs of each side were no measurement."""

    name: str
    paired: Paired | None
    p: float
    low_95: float
    high_95: float
    diverged: int
    baseline_diverged: int
    num_seeds: int


def differences_of(baseline: Sequence[float | None], variants: Mapping[str, Sequence[float | None]], alpha: float = ALPHA) -> list[Difference]:
    """Each variant against the baseline, losses in the order of the seeds. None: that run diverged; its pair is left out of
    the interval, and counted."""
    pairs = {name: [v - b for b, v in zip(baseline, losses, strict=True) if b is not None and v is not None] for name, losses in variants.items()}
    alone = {name: paired(values, alpha) if len(values) > 1 else None for name, values in pairs.items()}
    adjusted, levels = holm([1.0 if difference is None else difference.p for difference in alone.values()], alpha)
    differences = []
    for (name, difference), p, level in zip(alone.items(), adjusted, levels, strict=True):
        ends = (math.nan, math.nan) if difference is None else (difference.low, difference.high)
        again = None if difference is None else paired(pairs[name], level)
        lost = [sum(loss is None for loss in losses) for losses in (variants[name], baseline)]
        differences.append(Difference(name, again, p, *ends, lost[0], lost[1], len(baseline)))
    return differences


# --- compute multiplier ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CurvePoint:
    """The baseline trained `factor` times as long: its loss is `gain` lower than at 1, give or take a standard error."""

    factor: float
    gain: float
    error: float = 0.0


@dataclass(frozen=True)
class Multiplier:
    """How many times its budget the baseline needs for the variant's loss. value None: cannot tell, `why` says why. low,
    high: 95 % interval; None: the end lies outside the curve."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""


def multiplier(curve: Sequence[CurvePoint], difference: Paired | None, draws: int = 4000) -> Multiplier:
    """Where the baseline's own curve, interpolated in ln factor and made monotone, reaches the variant's loss.

    curve: without the point at 1. The interval draws the difference from its t distribution and each gain from a normal one.
    """
    if difference is None:
        return Multiplier(None, why="there are fewer than 2 pairs of finished runs")
    points = sorted([*curve, CurvePoint(1.0, 0.0)], key=lambda point: point.factor)
    if len(points) < 2:
        return Multiplier(None, why="the baseline was trained at one budget only, so it has no curve")
    ln_factor = np.log([point.factor for point in points])
    gain, error = np.array([point.gain for point in points]), np.array([point.error for point in points])
    if gain[-1] - gain[0] <= 2 * math.hypot(error[-1], error[0]):
        return Multiplier(None, why="the baseline's loss does not fall with its budget by more than its noise")
    target = -difference.mean
    center = _reach(ln_factor, gain, target)
    rng = np.random.default_rng(0)
    sampled = target + difference.error * rng.standard_t(difference.num_pairs - 1, draws)
    curves = gain + error * rng.standard_normal((draws, len(points)))
    ends = np.quantile([_reach(ln_factor, row, value) for row, value in zip(curves, sampled, strict=True)], (0.025, 0.975), method="nearest")
    low, high = (float(np.exp(end)) if math.isfinite(end) else None for end in ends)
    if not math.isfinite(center):
        edge, side = (points[0].factor, "above") if center < 0 else (points[-1].factor, "below")
        return Multiplier(None, low, high, f"the variant's loss lies {side} the baseline's curve, which ends at {edge:g} times its budget")
    return Multiplier(float(np.exp(center)), low, high)


def _reach(ln_factor: Array, gain: Array, target: float) -> float:
    """ln factor at which the monotone curve gains `wanted`; -inf, inf outside."""
    from scipy.optimize import isotonic_regression

    rising = isotonic_regression(gain).x + 1e-12 * (ln_factor - ln_factor[0])  # never flat, so that a place is one place
    if target < rising[0] or target > rising[-1]:
        return -math.inf if target < rising[0] else math.inf
    return float(np.interp(target, rising, ln_factor))
