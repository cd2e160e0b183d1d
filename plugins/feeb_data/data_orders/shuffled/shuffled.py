"""Every epoch visits every sequence once, by a permutation of its own."""

from __future__ import annotations

import numpy as np

from feebcore.config import DataOrderConfig
from feebcore.data.permutation import FeistelPermutation
from feebcore.protocols import BuildContext, DataOrder


class ShuffledOrder(DataOrder):
    """Sample i is position i mod n of epoch i // n, through that epoch's permutation. Stateless."""

    def __init__(self, config: DataOrderConfig, context: BuildContext) -> None:
        self._permutation = FeistelPermutation(context.num_sequences, context.seed)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        epochs, positions = np.divmod(np.asarray(samples, dtype=np.int64), self._permutation.n)
        return self._permutation(positions, epochs)
