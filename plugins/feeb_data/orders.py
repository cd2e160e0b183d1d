"""Order `shuffled`: every epoch sees every window once, in an order of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.order import FeistelPermutation

if TYPE_CHECKING:
    from feeb_data import ShuffledConfig


class ShuffledOrder:
    """Sample i is position i mod n of epoch i // n, through that epoch's permutation. Stateless."""

    def __init__(self, num_windows: int, seed: int) -> None:
        self._permutation = FeistelPermutation(num_windows, seed)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Windows int64 [B] of the sample indices int64 [B]."""
        epochs, positions = np.divmod(np.asarray(samples, dtype=np.int64), self._permutation.n)
        return self._permutation(positions, epochs)


def build_shuffled(config: ShuffledConfig, num_windows: int, seed: int) -> ShuffledOrder:
    return ShuffledOrder(num_windows, seed)
