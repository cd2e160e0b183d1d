"""Confidence intervals for what a benchmark measures: shares, means and ratios."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """value with its interval [low, high], from n observations. `_asdict()` is what metrics store."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """A share and its Wilson score interval (Wilson 1927): sound near 0 and 1 and for small n; (0, 0, 1) for n = 0. successes
    may be fractional, where an observation is itself a mean."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(0.0, 0.0, 1.0, 0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return Interval(share, 0.0 if successes == 0 else max(0.0, center - half), 1.0 if successes == n else min(1.0, center + half), n)


def bootstrap(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """sum(numerators) / sum(denominators) with its percentile bootstrap interval over whole observations (Efron 1979).

    Without denominators: a mean. For bits per byte an observation is a document, so that the spread between
    documents counts.
    """
    top = np.asarray(numerators, dtype=np.float64)
    bottom = np.ones_like(top) if denominators is None else np.asarray(denominators, dtype=np.float64)
    n = len(top)
    if n == 0 or bottom.sum() == 0:
        return Interval(float("nan"), float("nan"), float("nan"), n)
    rng = np.random.default_rng(seed)
    ratios: list[np.ndarray] = []
    block = max(1, (1 << 22) // n)  # resamples whose draws are held at once
    while (left := resamples - sum(map(len, ratios))) > 0:
        drawn = rng.integers(0, n, size=(min(block, left), n))
        ratios.append(top[drawn].sum(1) / np.maximum(bottom[drawn].sum(1), 1e-300))
    low, high = np.quantile(np.concatenate(ratios), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), n)


def dump(interval: Interval, **more: Any) -> dict[str, Any]:
    """`{value, low, high, n, …}`, as metrics and results.json hold it."""
    return {**interval._asdict(), **more}
