"""alpha = beta, as Muennighoff et al. 2023 fit it."""

from __future__ import annotations

import numpy as np

from feebcore.scaling.minimize import Array
from feebcore.scaling.posterior import Form, GridLaw
from feebcore.scaling.projection import Prior
from feebcore.scaling.surface import Surfaces


def rows(laws: Surfaces) -> Array:
    with np.errstate(over="ignore"):
        return np.stack([laws.floor, np.exp(laws.ln_a), np.exp(laws.ln_b), laws.alpha, np.full(len(laws.alpha), 0.5)], 1)


def surfaces(values: Array) -> Surfaces:
    floor, a, b, alpha, _ = values.T
    with np.errstate(divide="ignore"):
        return Surfaces(floor, np.log(a), np.log(b), alpha, alpha, np.ones(len(values)))


TIED = Form(
    "tied",
    ("E", "A", "B", "alpha", "a"),
    Prior((0.38,)),
    True,
    lambda drawn: (drawn[:, 0], drawn[:, 0], np.ones(len(drawn))),
    rows,
    surfaces,
    "L = E + A / N^alpha + B / D^alpha",
)


class TiedLaw(GridLaw):
    form = TIED
