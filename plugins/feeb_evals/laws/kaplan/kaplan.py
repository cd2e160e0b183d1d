"""Equation 1.5 of Kaplan et al. 2020: L^(1 / alpha_D) is linear in N^-(alpha_N / alpha_D) and 1 / D."""

from __future__ import annotations

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.posterior import Form, GridLaw
from feebcore.scaling.projection import Prior
from feebcore.scaling.surface import Surfaces


def exponents(drawn: Array) -> tuple[Array, Array, Array]:
    """Of (alpha_N, alpha_D): alpha, beta and power of the surface."""
    return drawn[:, 0] / drawn[:, 1], np.ones(len(drawn)), drawn[:, 1]


def rows(laws: Surfaces) -> Array:
    with np.errstate(over="ignore"):
        sizes = np.exp(laws.ln_a / laws.alpha), np.exp(laws.ln_b)
    return np.stack([*sizes, laws.alpha * laws.power, laws.power, 1.0 / (1.0 + laws.alpha)], 1)


def surfaces(values: Array) -> Surfaces:
    size, tokens, by_size, by_tokens, _ = values.T
    alpha = by_size / by_tokens
    with np.errstate(divide="ignore"):
        return Surfaces(np.zeros(len(values)), alpha * np.log(size), np.log(tokens), alpha, np.ones(len(values)), by_tokens)


KAPLAN = Form(
    "kaplan",
    ("N_c", "D_c", "alpha_N", "alpha_D", "a"),
    Prior((0.08, 0.1), 0.6),
    False,
    exponents,
    rows,
    surfaces,
    "L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
)


class KaplanLaw(GridLaw):
    form = KAPLAN
