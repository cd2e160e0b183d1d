"""Token store to batches: stateless in the step, so that resuming is exact and costs nothing.

Sample i of a run is slot i % batch_size of step i // batch_size. The order part says which window a sample index
means, the packing part what a window holds; ranks take the slots rank::world. The global stream of batches is
therefore the same for any number of ranks or micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.data.prefetch import Prefetch
from feebcore.data.views import source_views
from feebcore.errors import DataError
from feebcore.parts import Part
from feebcore.protocols import Batch, DataOrder, DataOrderContext, PackedWindows, Packing

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore

SAMPLES_ORDERED_AT_ONCE = 2048

__all__ = ["BatchSource", "Prefetch", "build_order", "make_batches"]


def make_batches(store: TokenStore, packing: Part, order: Part, batch_size: int, seq_len: int, seed: int, max_steps: int = 0) -> BatchSource:
    """Build the packing and order parts over `store` and join them. max_steps: of the run; orders that change on the way
    need it. Raises DataError when the text is shorter than a window."""
    windows: Packing
    sources: dict[str, range] = {}
    if getattr(order.config, "by_source", False):
        windows = PackedBySource(store, packing, seq_len)
        sources = windows.sources
    else:
        windows = packing.build(store, seq_len)
    context = DataOrderContext(windows.num_windows, batch_size, max_steps, windows, store, sources)
    return BatchSource(store, windows, build_order(order, seed, context), batch_size, seq_len)


def build_order(order: Part, seed: int, context: DataOrderContext) -> DataOrder:
    """The order part over the windows of `context`, which its factory is given when it asks for it."""
    return order.build_with(context.num_windows, seed, context=context)


@dataclass(frozen=True)
class BatchSource:
    """`batch(step)` gives the `step`-th batch of `batch_size` windows of `seq_len` tokens, whatever was asked before."""

    store: TokenStore
    packing: Packing
    order: DataOrder
    batch_size: int
    seq_len: int
    _ordered: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_windows(self) -> int:
        """Windows of one epoch."""
        return self.packing.num_windows

    @property
    def steps_per_epoch(self) -> float:
        return self.packing.num_windows / self.batch_size

    def statistics(self, max_steps: int) -> dict[str, Any]:
        """What a run of so many steps reads, for its metrics: windows of an epoch, how often they are seen (`epochs`, and
        by source in `epochs_by_source` where the order tells), and what the packing says of padding and waste."""
        samples = max_steps * self.batch_size
        found: dict[str, Any] = {"windows": self.num_windows, "epochs": samples / self.num_windows}
        if hasattr(self.order, "epochs"):
            found["epochs_by_source"] = self.order.epochs(samples)
        return found | dict(getattr(self.packing, "statistics", {}))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of one step: tokens, targets int64 [B / world, T], and what the packing adds."""
        if self.batch_size % world:
            raise ValueError(f"batch_size {self.batch_size} does not divide over {world} ranks")
        from torch import from_numpy

        packed = self.packing.windows(self._windows(step)[rank::world])
        # copied by numpy: torch would start threads of its own in the thread that prefetches
        arrays = (packed.tokens[:, :-1], packed.tokens[:, 1:], packed.mask, packed.doc_ids, packed.positions)
        kinds = (np.int64, np.int64, np.bool_, np.int64, np.int64)
        return Batch(*(None if a is None else from_numpy(np.ascontiguousarray(a, dtype=k)) for a, k in zip(arrays, kinds, strict=True)))  # type: ignore[arg-type]

    def _windows(self, step: int) -> np.ndarray:
        """Windows int64 [batch_size] of a step. The order is asked for many steps at once: a call costs 0.7 ms, a sample 1 us."""
        steps = max(1, SAMPLES_ORDERED_AT_ONCE // self.batch_size)
        block, number = divmod(step, steps)
        found = self._ordered.get(block)
        if found is None:
            begin = block * steps * self.batch_size
            found = self.order(np.arange(begin, begin + steps * self.batch_size, dtype=np.int64)).reshape(steps, self.batch_size)
            if len(self._ordered) >= 4:
                self._ordered.clear()
            self._ordered[block] = found
        return found[number]


class PackedBySource:
    """A packing over each source by itself; windows are numbered source after source. `sources`: the windows of each."""

    def __init__(self, store: TokenStore, packing: Part, seq_len: int) -> None:
        self._parts: list[Packing] = []
        self.sources: dict[str, range] = {}
        for name, view in source_views(store).items():
            try:
                part = packing.build(view, seq_len)
            except DataError as error:
                raise DataError(f"source {name!r}: {error}") from error
            begin = sum(p.num_windows for p in self._parts)
            self.sources[name] = range(begin, begin + part.num_windows)
            self._parts.append(part)
        self._begins = np.array([r.start for r in self.sources.values()], dtype=np.int64)
        self.num_windows = sum(part.num_windows for part in self._parts)

    def windows(self, indices: np.ndarray) -> PackedWindows:
        """As of the packing; rows of several sources are made source by source."""
        indices = np.asarray(indices, dtype=np.int64)
        owner_B = self._begins.searchsorted(indices, side="right") - 1
        found: PackedWindows | None = None
        for number in np.unique(owner_B).tolist():
            rows = np.flatnonzero(owner_B == number)
            packed = self._parts[number].windows(indices[rows] - self._begins[number])
            if found is None:
                fields = {k: None if v is None else np.empty((len(indices), v.shape[1]), v.dtype) for k, v in vars(packed).items()}
                found = replace(packed, **fields)  # type: ignore[arg-type]
            for key, value in vars(packed).items():
                if value is not None:
                    getattr(found, key)[rows] = value
        return self._parts[0].windows(indices) if found is None else found

    @property
    def statistics(self) -> dict[str, Any]:
        """By source."""
        return {name: dict(getattr(part, "statistics", {})) for name, part in zip(self.sources, self._parts, strict=True)}
