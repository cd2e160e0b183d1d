"""Orders `shuffled`, every epoch sees every sequence once, in an order of its own, and `reuse`, each batch several times."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.loader import build_order
from feebcore.data.permutation import FeistelPermutation

if TYPE_CHECKING:
    from feeb_data import RepeatBatchesConfig, ShuffledConfig
    from feebcore.protocols import DataOrder, DataOrderContext


class ShuffledOrder:
    """Sample i is position i mod n of epoch i // n, through that epoch's permutation. Stateless."""

    def __init__(self, num_sequences: int, seed: int) -> None:
        self._permutation = FeistelPermutation(num_sequences, seed)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Sequences int64 [B] of the sample indices int64 [B]."""
        epochs, positions = np.divmod(np.asarray(samples, dtype=np.int64), self._permutation.n)
        return self._permutation(positions, epochs)


def build_shuffled(config: ShuffledConfig, num_sequences: int, seed: int) -> ShuffledOrder:
    return ShuffledOrder(num_sequences, seed)


class RepeatBatches:
    """Every batch of another order comes `times` times in a row."""

    def __init__(self, order: DataOrder, times: int, batch_size: int) -> None:
        self._order, self._times, self._batch_size = order, times, batch_size

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Sequences int64 [B] of the sample indices int64 [B]."""
        return self._order(self._original(np.asarray(samples, dtype=np.int64)))

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Of the order that is reused, repeats counted."""
        epochs = getattr(self._order, "epochs", None)
        return {} if epochs is None else {name: n * self._times for name, n in epochs(-(-num_samples // self._times)).items()}

    def _original(self, samples: np.ndarray) -> np.ndarray:
        steps, slots = np.divmod(samples, self._batch_size)
        return steps // self._times * self._batch_size + slots


def build_repeat_batches(config: RepeatBatchesConfig, num_sequences: int, seed: int, context: DataOrderContext | None = None) -> RepeatBatches:
    if context is None:
        return RepeatBatches(config.data_order.build(num_sequences, seed), config.times, 1)
    inner = dataclasses.replace(context, max_steps=-(-context.max_steps // config.times))  # the other order has fewer steps of its own
    return RepeatBatches(build_order(config.data_order, seed, inner), config.times, context.batch_size)
