"""The sizes that a planner may choose from, and what a token of each costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from feebcore.errors import FeebError
from feebcore.scaling.planning import Size, dotted, size_name
from feebcore.scaling.points import Measure, ParameterCount

FINENESS = 1.12  # least ratio of the parameters of two neighbors


@dataclass(frozen=True, eq=False)
class Sized:
    """One size: its overrides, N by the sweep's parameter count, and training FLOPs per token."""

    name: str
    overrides: dict[str, Any]
    size: float
    flops_per_token: float

    def tokens(self, flops: float) -> float:
        """D that `flops` pay for."""
        return flops / self.flops_per_token


class Sizes:
    """In ascending order of N. A token's cost between two sizes is a straight line in logarithms."""

    def __init__(self, sizes: Sequence[Sized]) -> None:
        self.sizes = sorted(sizes, key=lambda s: s.size)
        if len({s.size for s in self.sizes}) < 4:
            raise FeebError(f"planner adaptive: {len(self.sizes)} sizes are too few to plan with; list at least 4 in `sizes`, over a decade of parameters")
        self._ln_size = np.log([s.size for s in self.sizes])
        self._ln_cost = np.log([s.flops_per_token for s in self.sizes])

    def flops_per_token(self, size: float) -> float:
        """Of any N; beyond the largest size it grows as N."""
        above = max(0.0, math.log(size) - float(self._ln_size[-1]))
        return math.exp(float(np.interp(math.log(size), self._ln_size, self._ln_cost)) + above)

    def nearest(self, size: float, allowed: Sequence[Sized]) -> Sized:
        return min(allowed, key=lambda s: abs(math.log(s.size / size)))


def given_sizes(sizes: Sequence[Mapping[str, Any]], measure: Measure, parameter_count: ParameterCount) -> Sizes:
    found = []
    for size in sizes:
        overrides = dotted(dict(size))
        cost = measure(overrides)
        found.append(Sized(size_name(dict(size)), overrides, float(getattr(cost.counts, parameter_count)), cost.flops_per_token))
    return Sizes(found)


def widths(step: int, head_dim: int | None, aspect_ratio: float | None, largest: float, measure: Measure, parameter_count: ParameterCount) -> Sizes:
    """Widths that are multiples of `step`, from 2 `step` on, to the first with `largest` parameters."""
    found: list[Sized] = []
    for width in range(2 * step, 1 << 16, step):
        size = width_of(width, head_dim, aspect_ratio)
        overrides = dotted(size)
        if found and found[-1].size * FINENESS > found[-1].size * (width / found[-1].overrides["architecture.d_model"]) ** 2:
            continue
        cost = measure(overrides)
        number = float(getattr(cost.counts, parameter_count))
        if found and number < found[-1].size * FINENESS:
            continue
        found.append(Sized(size_name(size), overrides, number, cost.flops_per_token))
        if number >= largest:
            break
    return Sizes(found)


def width_of(width: int, head_dim: int | None, aspect_ratio: float | None) -> Size:
    """`num_heads` so that a head has at least `head_dim` channels, an even number; None: it is left out."""
    heads = max((h for h in range(1, width // (head_dim or width) + 1) if width % h == 0 and width // h % 2 == 0), default=1)
    return {"d_model": width} | ({"num_heads": heads} if head_dim else {}) | ({"num_layers": max(1, round(width / aspect_ratio))} if aspect_ratio else {})
