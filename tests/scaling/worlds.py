"""Runs of worlds whose law is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from feebcore.protocols import Counts
from feebcore.scaling.points import Cost, Point

TRUTH = {"E": 1.7, "A": 400.0, "B": 2000.0, "alpha": 0.34, "beta": 0.37}


def law(size: float, tokens: float) -> float:
    return TRUTH["E"] + TRUTH["A"] / size ** TRUTH["alpha"] + TRUTH["B"] / tokens ** TRUTH["beta"]


def kaplan(size: float, tokens: float) -> float:
    """The law of Kaplan et al. 2020."""
    return ((8.8e13 / size) ** (0.076 / 0.095) + 5.4e13 / tokens) ** 0.095


def point(size: float, tokens: float, loss: float, budget: float = 0.0) -> Point:
    return Point(f"{size:g}x{tokens:g}", int(size * 2), int(size), int(size), tokens, 6 * int(size) * tokens, loss, budget)


def grid(noise: float = 0.0, seed: int = 0, sizes: int = 5, budgets: int = 5, spacing: float = 3.0, width: float = 3.0) -> list[Point]:
    """Budgets `spacing` apart from 1e17 FLOPs, sizes from 1 / width to width times the best."""
    rng = np.random.default_rng(seed)
    points = []
    for budget in 1e17 * spacing ** np.arange(budgets):
        for factor in np.geomspace(1 / width, width, sizes):
            size = round(factor * 0.3 * (budget / 6) ** 0.5)
            tokens = budget / 6 / size
            points.append(point(size, tokens, law(size, tokens) * float(np.exp(noise * rng.normal())), budget))
    return points


SIZES: list[dict[str, Any]] = [{"d_model": 64, "num_layers": 2}, {"d_model": 128, "num_layers": 2, "optimizer.lr": 0.01}]


def measure(overrides: Mapping[str, Any]) -> Cost:
    """A model of 12 l d^2 parameters; batch 32 of 128 tokens unless overridden."""
    size = 12 * overrides["architecture.num_layers"] * overrides["architecture.d_model"] ** 2
    return Cost(Counts(size, size, size, 2.0 * size, 2.0 * size, 0), 6.0 * size, overrides.get("batch_size", 32), 128)
