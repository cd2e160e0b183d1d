"""Every batch of another data order, several times in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feebcore.protocols import BuildContext, DataOrder

if TYPE_CHECKING:
    from feeb_data.data_orders.repeat_batches import RepeatBatchesConfig


class RepeatBatches(DataOrder):
    """Step s gets the batch of step s // times of the inner data order, which has so many times fewer steps."""

    def __init__(self, config: RepeatBatchesConfig, context: BuildContext) -> None:
        self._times, self._batch_size = config.times, context.batch_size or 1
        self._inner: DataOrder = config.data_order.build(context, total_steps=-(-context.total_steps // config.times))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        steps, slots = np.divmod(np.asarray(samples, dtype=np.int64), self._batch_size)
        return self._inner(steps // self._times * self._batch_size + slots)

    def epochs(self, num_samples: int) -> dict[str, float]:
        """Of the inner data order, repetitions counted."""
        return {name: n * self._times for name, n in self._inner.epochs(-(-num_samples // self._times)).items()}
