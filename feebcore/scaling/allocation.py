"""The best size for a number of FLOPs by a law in N and D, with what a token really costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from feebcore.scaling.points import Law, LawFit, ParameterCount, Point


def cost_of_a_token(points: Sequence[Point], parameter_count: ParameterCount) -> Callable[[float], float]:
    """Training FLOPs per token of any N: straight lines in logarithms between the sizes that were trained, the last one goes on beyond the largest."""
    known = {math.log(p.size(parameter_count)): math.log(p.flops_per_token) for p in points}
    ln_sizes = sorted(known)
    ln_costs = [known[x] for x in ln_sizes]
    last = max(-3, -len(ln_sizes))  # three sizes: two neighbors may be the same but for a rounded width
    slope = (ln_costs[-1] - ln_costs[last]) / (ln_sizes[-1] - ln_sizes[last]) if len(known) > 1 else 1.0

    def cost(size: float) -> float:
        x = math.log(size)
        return math.exp(float(np.interp(x, ln_sizes, ln_costs)) + slope * max(0.0, x - ln_sizes[-1]))

    return cost


def best_size(law: Law, fit: LawFit, flops: float, cost: Callable[[float], float]) -> float:
    """N of least predicted loss for `flops` by a law in N and D, with `cost` FLOPs per token."""
    low, high = 1e2, 1e13
    for _ in range(6):
        grid = np.geomspace(low, high, 41)
        losses = [law.predict(fit, float(n), flops / cost(float(n))).loss for n in grid]
        best = int(np.argmin(losses))
        low, high = float(grid[max(0, best - 1)]), float(grid[min(40, best + 1)])
    return math.sqrt(low * high)
