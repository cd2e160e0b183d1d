"""Mixtures of sources: how a run's shares are written and read, and what a law of mixtures promises."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from feebcore.errors import FeebError
from feebcore.scaling.minimize import Array
from feebcore.scaling.points import Law, LawFit, Optimum, Prediction

Shares = Mapping[str, float]
"""Share of each source of the training samples, by name; they sum to 1."""


@dataclass(frozen=True)
class BestMixture:
    """The mixture of least predicted loss. intervals: 95 % of each share, empty without draws. gain: ln(loss of the baseline / loss of this
    mixture), with the 95 % interval of what this mixture really gains (NaN without draws). at_edge: sources whose share is at
    an edge of those tried, or at its limit."""

    shares: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    gain: float
    gain_low: float
    gain_high: float
    at_edge: tuple[str, ...] = ()

    @property
    def is_better(self) -> bool:
        """Whether the interval says that it is better than the baseline."""
        return self.gain_low > 0


class MixtureLaw(Law):
    """A law of one size and token count: its points carry shares and losses by source. `predict_point` knows the sizes of its points only."""

    def predict(self, fit: LawFit, size: float, tokens: float) -> Prediction:
        raise FeebError("a law of mixtures says which mixture is best, and nothing of other sizes; take a law in N and D, such as posterior")

    def optimum(self, fit: LawFit, flops: float) -> Optimum:
        self.predict(fit, 0.0, 0.0)
        raise AssertionError

    @abstractmethod
    def best(self, fit: LawFit, baseline: Shares, limits: Shares) -> BestMixture:
        """limits: the largest share that each source may have; sources that are not named have none."""


def data_order(shares: Shares) -> dict[str, Any]:
    """The override that trains on this mixture."""
    return {"data_order": {"name": "mixture", "proportions": dict(shares)}}


def shares_in(overrides: Mapping[str, Any]) -> dict[str, float]:
    """The shares that `data_order` wrote; none where a run does not choose its mixture."""
    order = overrides.get("data_order")
    return shares_of(order["proportions"]) if isinstance(order, Mapping) and "proportions" in order else {}


def shares_of(weights: Shares) -> dict[str, float]:
    """The weights over their sum."""
    total = sum(weights.values())
    return {name: float(weight) / total for name, weight in weights.items()}


def within(shares: Array, low: Array, high: Array) -> Array:
    """Shares [n,J] moved into low <= share <= high [J]: what is above a limit goes to the others in proportion to their room.

    The box must meet the simplex: sum(low) <= 1 <= sum(high).
    """
    moved = np.clip(shares, low, high)
    missing = 1.0 - moved.sum(1, keepdims=True)
    room = np.where(missing > 0, high - moved, moved - low)
    total = np.maximum(room.sum(1, keepdims=True), 1e-300)
    return np.asarray(moved + missing * room / total)
