"""Chinchilla's second approach: along each budget the loss against N has a minimum; the minima follow C^a.

For plots and as a second opinion: the parabola is biased even without noise (a wide or off-center grid, alpha other
than beta), so decisions come from the parametric fit. Akima interpolation in ln N, ln L with its argmin is the method of
Porian et al. 2024; the parabola in ln N that of Hoffmann et al. 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.points import NotIdentifiable, ParameterCount, Point

Method = Literal["parabola", "akima"]
GRID = 25  # points an interval that the Akima curve is looked at


@dataclass(frozen=True)
class Minimum:
    """The best N along one budget. problem: '' when it is an interior minimum; else why it says nothing."""

    budget: float
    size: float
    tokens: float
    loss: float
    num_points: int
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Allocation:
    """N_opt = coefficient * C^exponent over the interior minima."""

    exponent: float
    coefficient: float
    num_minima: int


def minimum(budget: float, size: Array, tokens: Array, loss: Array, method: Method = "parabola") -> Minimum:
    """The minimum over N of one isoFLOP curve. tokens at the minimum: ln D interpolated in ln N."""
    order = np.argsort(size)
    x, y, ln_loss = np.log(size[order]), np.log(tokens[order]), np.log(loss[order])
    if len(x) < 3 or len(np.unique(x)) < 3:
        return Minimum(budget, math.nan, math.nan, math.nan, len(x), "fewer than 3 sizes")
    vertex, value, problem = _akima(x, ln_loss) if method == "akima" else _parabola(x, np.exp(ln_loss))
    if math.isnan(vertex):
        return Minimum(budget, math.nan, math.nan, math.nan, len(x), problem)
    return Minimum(budget, math.exp(vertex), math.exp(_linear(vertex, x, y)), value, len(x), problem)


def minima(points: Sequence[Point], parameter_count: ParameterCount, method: Method = "parabola") -> list[Minimum]:
    """One a budget, lowest budget first; points without a budget are left out."""
    minima = []
    for budget in sorted({p.budget for p in points if p.budget > 0}):
        curve = [p for p in points if p.budget == budget]
        size = np.array([p.size(parameter_count) for p in curve], dtype=np.float64)
        minima.append(minimum(budget, size, np.array([p.tokens for p in curve]), np.array([p.loss for p in curve]), method))
    return minima


def allocate(minima: Sequence[Minimum]) -> Allocation:
    """A line through ln N_opt against ln C. Raises NotIdentifiable with fewer than 2 interior minima, or when N_opt
    would not grow with compute."""
    interior = [m for m in minima if not m.problem]
    if len(interior) < 2:
        raise NotIdentifiable(
            f"{len(interior)} of {len(minima)} budgets have an interior minimum; "
            + "; ".join(f"{m.budget:.3g} FLOPs: {m.problem}" for m in minima if m.problem)
        )
    exponent, intercept = np.polyfit(np.log([m.budget for m in interior]), np.log([m.size for m in interior]), 1)
    if exponent <= 0:
        raise NotIdentifiable(f"the best size falls with compute (exponent {exponent:.2f}); the small budgets' curves are off, or too noisy")
    return Allocation(float(exponent), float(np.exp(intercept)), len(interior))


def _parabola(x: Array, loss: Array) -> tuple[float, float, str]:
    center = x.mean()
    curvature, slope, level = np.polyfit(x - center, loss, 2)
    if curvature <= 0:
        return math.nan, math.nan, "the curve has no minimum (it bends down)"
    vertex = float(-slope / (2 * curvature))
    value = float(level - slope**2 / (4 * curvature))
    if vertex < x[0] - center or vertex > x[-1] - center:
        edge = "smallest" if vertex < x[0] - center else "largest"
        return vertex + float(center), value, f"the minimum lies beyond the {edge} size; add runs there"
    return vertex + float(center), value, ""


def _akima(x: Array, ln_loss: Array) -> tuple[float, float, str]:
    from scipy.interpolate import Akima1DInterpolator

    x, keep = np.unique(x, return_index=True)
    fine = np.linspace(x[0], x[-1], GRID * (len(x) - 1))
    curve = Akima1DInterpolator(x, ln_loss[keep])(fine)
    best = int(curve.argmin())
    problem = ""
    if best in (0, len(fine) - 1):
        problem = f"the minimum lies at the {'smallest' if best == 0 else 'largest'} size; add runs beyond it"
    return float(fine[best]), float(np.exp(curve[best])), problem


def _linear(at: float, x: Array, y: Array) -> float:
    """Piecewise linear, straight on beyond the ends."""
    i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
    if x[i + 1] == x[i]:
        return float(y[i])
    return float(y[i] + (y[i + 1] - y[i]) * (at - x[i]) / (x[i + 1] - x[i]))
