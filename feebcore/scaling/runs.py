"""The points of a fit as arrays, repeated runs of one cell merged into one measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feebcore.scaling.minimize import Array
from feebcore.scaling.points import ParameterCount, Point


def group_numbers(points: Sequence[Point], parameter_count: ParameterCount) -> NDArray[np.intp]:
    """Which measurement each point [n] belongs to, numbered in order of appearance: its `group`, else those of equal N, D and unique tokens."""
    seen: dict[object, int] = {}
    keys = [p.group or (p.size(parameter_count), p.tokens, p.unique_tokens) for p in points]
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.intp)


@dataclass(frozen=True)
class Runs:
    """Distinct cells: names, size N, tokens D, unique tokens, loss (geometric mean over a cell's runs), weight; group [points] says which
    cell each point became."""

    names: tuple[str, ...]
    size: Array
    tokens: Array
    unique: Array
    loss: Array
    weight: Array
    group: NDArray[np.intp]

    @classmethod
    def of(cls, points: Sequence[Point], parameter_count: ParameterCount) -> Runs:
        group = group_numbers(points, parameter_count)
        weight = np.array([p.weight for p in points], dtype=np.float64)
        total = np.bincount(group, weight)

        def mean(values: Sequence[float]) -> Array:
            return np.asarray(np.exp(np.bincount(group, weight * np.log(np.array(values, dtype=np.float64))) / total))

        names = {int(g): p.name for g, p in zip(group[::-1], points[::-1], strict=True)}
        return cls(
            tuple(names[i] for i in range(len(names))),
            mean([p.size(parameter_count) for p in points]),
            mean([p.tokens for p in points]),
            mean([p.tokens if p.unique_tokens is None else min(p.tokens, p.unique_tokens) for p in points]),
            mean([p.loss for p in points]),
            total / np.bincount(group),
            group,
        )

    @property
    def flops(self) -> Array:
        """6 N D [n]."""
        return 6.0 * self.size * self.tokens

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[np.bool_]) -> Runs:
        """Those cells only."""
        names = tuple(name for name, kept in zip(self.names, rows, strict=True) if kept)
        arrays = {key: getattr(self, key)[rows] for key in ("size", "tokens", "unique", "loss", "weight")}
        return Runs(names=names, group=np.arange(len(names)), **arrays)
