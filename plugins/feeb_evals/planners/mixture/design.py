"""Mixtures that fill the simplex: each next one is that which is farthest from all before it."""

from __future__ import annotations

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.mixture import within

CANDIDATES = 4000
DIGITS = 3


def space_filling(first: Array, number: int, low: Array, high: Array, seed: int) -> Array:
    """[number,J] shares that begin with `first` [J], within low and high [J]; a function of its arguments."""
    rng = np.random.default_rng(seed)
    size = len(first)
    some = low + max(0.0, 1.0 - low.sum()) * rng.dirichlet(np.ones(size), CANDIDATES)
    some = within(np.concatenate([np.eye(size), some]), low, high)
    chosen = [first]
    distance = np.linalg.norm(some - first, axis=1)
    for _ in range(number - 1):
        chosen.append(some[distance.argmax()])
        distance = np.minimum(distance, np.linalg.norm(some - chosen[-1], axis=1))
    return rounded(np.array(chosen))


def rounded(shares: Array) -> Array:
    """To DIGITS digits [n,J], what is left over given to the largest, so that they still sum to 1."""
    short = shares.round(DIGITS)
    rows = np.arange(len(short))
    short[rows, short.argmax(1)] += 1.0 - short.sum(1)
    return np.asarray(short.round(DIGITS))
