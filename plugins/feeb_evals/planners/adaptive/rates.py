"""The rate probe: at a few places (N, D) some learning rates; the best of each place, and a ridge through them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CURVATURE, CURVATURE_SPREAD = 0.006, 0.003
"""Prior of the curvature of ln(loss) in ln(rate): a rate twice too high costs .3 %."""
SCATTER = 0.003  # of ln(loss) around the parabola
RIDGE_SPREAD = (1.0, 0.2, 0.2)  # prior standard deviations of the ridge's level and of its slopes in ln N and ln D
PLACE_SPREAD = 0.2  # of a place's best ln(rate) around the ridge


@dataclass(frozen=True)
class Best:
    """The best multiple of the rates at one place: its logarithm, that one's variance, why it cannot be believed ('' otherwise), and the parabola:
    ln(loss) by powers 0, 1, 2 of ln(factor)."""

    size: float
    tokens: float
    ln_factor: float
    variance: float
    problem: str = ""
    curve: tuple[float, float, float] = (math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Ridge:
    """ln(best multiple) = c0 + c1 (ln N - center) + c2 (ln D - center)."""

    coefficients: tuple[float, float, float] = (0.0, 0.0, 0.0)
    center: tuple[float, float] = (0.0, 0.0)

    def factor(self, size: float, tokens: float) -> float:
        """The multiple of the rule's learning rates at N = size, D = tokens."""
        level, by_size, by_tokens = self.coefficients
        return math.exp(level + by_size * (math.log(size) - self.center[0]) + by_tokens * (math.log(tokens) - self.center[1]))


def beyond(losses: Mapping[float, float], factors: Sequence[float]) -> float | None:
    """The factor to try next where the best one tried is at an edge; None where it lies inside. losses: by factor, of those that did not
    diverge. factors: all that were tried."""
    if not losses:
        return min(factors) / 2
    best = min(losses, key=lambda factor: losses[factor])
    if best == max(factors):
        return best * 2
    return best / 2 if best == min(factors) else None


def best_factor(size: float, tokens: float, losses: Mapping[float, float], at_edge: bool) -> Best:
    """The vertex of a parabola through ln(loss) in ln(factor), its curvature drawn to CURVATURE; at an edge never beyond it."""
    x = np.log(np.array(sorted(losses), dtype=np.float64))
    y = np.log(np.array([losses[factor] for factor in sorted(losses)]))
    design = np.vstack([np.stack([np.ones_like(x), x, x**2], 1) / SCATTER, [0.0, 0.0, 1.0 / CURVATURE_SPREAD]])
    covariance = np.linalg.pinv(design.T @ design)
    level, slope, curvature = (float(v) for v in covariance @ design.T @ np.append(y / SCATTER, CURVATURE / CURVATURE_SPREAD))
    curvature = max(curvature, CURVATURE / 4)
    vertex = float(-slope / (2 * curvature))
    gradient = np.array([0.0, -1 / (2 * curvature), slope / (2 * curvature**2)])
    variance = float(gradient @ covariance @ gradient)
    problem = ""
    if at_edge or vertex < x[0] - math.log(2) or vertex > x[-1] + math.log(2):
        problem = "the best rate lies at the edge of those tried"
        vertex = float(np.clip(vertex, x[0], x[-1]))
    return Best(size, tokens, vertex, variance, problem, (level, slope, curvature))


def ridge(places: Sequence[Best]) -> Ridge:
    """Weighted least squares through the places, drawn to the rule itself (a factor of 1 everywhere) by RIDGE_SPREAD."""
    if not places:
        return Ridge()
    points: NDArray[np.float64] = np.log([[place.size, place.tokens] for place in places])
    center = points.mean(0)
    spread = np.sqrt([place.variance + PLACE_SPREAD**2 for place in places])
    design = np.vstack([np.column_stack([np.ones(len(places)), points - center]) / spread[:, None], np.diag(1 / np.array(RIDGE_SPREAD))])
    target = np.append(np.array([place.ln_factor for place in places]) / spread, np.zeros(3))
    level, by_size, by_tokens = np.linalg.lstsq(design, target, rcond=None)[0]
    return Ridge((float(level), float(by_size), float(by_tokens)), (float(center[0]), float(center[1])))
