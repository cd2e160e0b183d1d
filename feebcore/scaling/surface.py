"""L(N, D) = (E + A / N^alpha + B / D^beta)^power for many laws at once: the form behind all laws here."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from feebcore.scaling.minimize import Array


@dataclass(frozen=True)
class Surfaces:
    """K laws. Every field [K]; A and B by their logarithms, which do not overflow."""

    floor: Array
    ln_a: Array
    ln_b: Array
    alpha: Array
    beta: Array
    power: Array

    def ln_loss(self, size: ArrayLike, tokens: ArrayLike) -> Array:
        """ln L [K,n] at sizes and tokens [n], or [K,n] where each law has its own."""
        with np.errstate(over="ignore"):
            by_size = np.exp(self.ln_a[:, None] - self.alpha[:, None] * np.log(size))
            by_tokens = np.exp(self.ln_b[:, None] - self.beta[:, None] * np.log(tokens))
        return np.asarray(self.power[:, None] * np.log(self.floor[:, None] + by_size + by_tokens))

    def best_size(self, flops: ArrayLike) -> Array:
        """N [K,n] of least loss under 6 N D = flops [n] (Hoffmann et al. 2022, eq. 4): G (C/6)^a, a = beta / (alpha + beta)."""
        ln_g = (np.log(self.alpha / self.beta) + self.ln_a - self.ln_b) / (self.alpha + self.beta)
        share = self.beta / (self.alpha + self.beta)
        return np.asarray(np.exp(ln_g[:, None] + share[:, None] * np.log(np.asarray(flops) / 6.0)))
