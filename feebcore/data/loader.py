"""Token store to batches: stateless in the step, so that resuming is exact and costs nothing.

Sample i of a run is slot i % batch_size of step i // batch_size. The order part says which sequence a sample index
means, the packing part what a sequence holds; ranks take the slots rank::world. The global stream of batches is
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
from feebcore.protocols import Batch, DataOrder, DataOrderContext, PackedSequences, Packing

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore

SAMPLES_ORDERED_AT_ONCE = 2048

__all__ = ["BatchSource", "Prefetch", "build_order", "make_batches"]


def make_batches(store: TokenStore, packing: Part, data_order: Part, batch_size: int, seq_len: int, seed: int, max_steps: int = 0) -> BatchSource:
    """Build the packing and order parts over `store` and join them. max_steps: of the run; orders that change on the way
    need it. Raises DataError when the text is shorter than a sequence."""
    sequences: Packing
    sources: dict[str, range] = {}
    if getattr(data_order.config, "by_source", False):
        sequences = PackedBySource(store, packing, seq_len)
        sources = sequences.sources
    else:
        sequences = packing.build(store, seq_len)
    context = DataOrderContext(sequences.num_sequences, batch_size, max_steps, sequences, store, sources)
    return BatchSource(store, sequences, build_order(data_order, seed, context), batch_size, seq_len)


def build_order(order: Part, seed: int, context: DataOrderContext) -> DataOrder:
    """The order part over the sequences of `context`, which its factory is given when it asks for it."""
    return order.build_with(context.num_sequences, seed, context=context)


@dataclass(frozen=True)
class BatchSource:
    """`batch(step)` gives the `step`-th batch of `batch_size` sequences of `seq_len` tokens, whatever was asked before."""

    store: TokenStore
    packing: Packing
    data_order: DataOrder
    batch_size: int
    seq_len: int
    _ordered: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_sequences(self) -> int:
        """Sequences of one epoch."""
        return self.packing.num_sequences

    @property
    def steps_per_epoch(self) -> float:
        return self.packing.num_sequences / self.batch_size

    def statistics(self, max_steps: int) -> dict[str, Any]:
        """What a run of so many steps reads, for its metrics: sequences of an epoch, how often they are seen (`epochs`, and
        by source in `epochs_by_source` where the order tells), and what the packing says of padding and waste."""
        samples = max_steps * self.batch_size
        found: dict[str, Any] = {"sequences": self.num_sequences, "epochs": samples / self.num_sequences}
        if hasattr(self.data_order, "epochs"):
            found["epochs_by_source"] = self.data_order.epochs(samples)
        return found | dict(getattr(self.packing, "statistics", {}))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of one step: tokens, targets int64 [B / world, T], and what the packing adds."""
        if self.batch_size % world:
            raise ValueError(f"batch_size {self.batch_size} does not divide over {world} ranks")
        from torch import from_numpy

        packed = self.packing.sequences(self._sequences(step)[rank::world])
        # copied by numpy: torch would start threads of its own in the thread that prefetches
        arrays = (packed.tokens[:, :-1], packed.tokens[:, 1:], packed.mask, packed.doc_ids, packed.positions)
        kinds = (np.int64, np.int64, np.bool_, np.int64, np.int64)
        return Batch(*(None if a is None else from_numpy(np.ascontiguousarray(a, dtype=k)) for a, k in zip(arrays, kinds, strict=True)))  # type: ignore[arg-type]

    def _sequences(self, step: int) -> np.ndarray:
        """Sequences int64 [batch_size] of a step. The order is asked for many steps at once: a call costs 0.7 ms, a sample 1 us."""
        steps = max(1, SAMPLES_ORDERED_AT_ONCE // self.batch_size)
        block, number = divmod(step, steps)
        found = self._ordered.get(block)
        if found is None:
            begin = block * steps * self.batch_size
            found = self.data_order(np.arange(begin, begin + steps * self.batch_size, dtype=np.int64)).reshape(steps, self.batch_size)
            if len(self._ordered) >= 4:
                self._ordered.clear()
            self._ordered[block] = found
        return found[number]


class PackedBySource:
    """A packing over each source by itself; sequences are numbered source after source. `sources`: the sequences of each."""

    def __init__(self, store: TokenStore, packing: Part, seq_len: int) -> None:
        self._parts: list[Packing] = []
        self.sources: dict[str, range] = {}
        for name, view in source_views(store).items():
            try:
                part = packing.build(view, seq_len)
            except DataError as error:
                raise DataError(f"source {name!r}: {error}") from error
            begin = sum(p.num_sequences for p in self._parts)
            self.sources[name] = range(begin, begin + part.num_sequences)
            self._parts.append(part)
        self._begins = np.array([r.start for r in self.sources.values()], dtype=np.int64)
        self.num_sequences = sum(part.num_sequences for part in self._parts)

    def sequences(self, indices: np.ndarray) -> PackedSequences:
        """As of the packing; rows of several sources are made source by source."""
        indices = np.asarray(indices, dtype=np.int64)
        owner_B = self._begins.searchsorted(indices, side="right") - 1
        found: PackedSequences | None = None
        for number in np.unique(owner_B).tolist():
            rows = np.flatnonzero(owner_B == number)
            packed = self._parts[number].sequences(indices[rows] - self._begins[number])
            if found is None:
                fields = {k: None if v is None else np.empty((len(indices), v.shape[1]), v.dtype) for k, v in vars(packed).items()}
                found = replace(packed, **fields)  # type: ignore[arg-type]
            for key, value in vars(packed).items():
                if value is not None:
                    getattr(found, key)[rows] = value
        return self._parts[0].sequences(indices) if found is None else found

    @property
    def statistics(self) -> dict[str, Any]:
        """By source."""
        return {name: dict(getattr(part, "statistics", {})) for name, part in zip(self.sources, self._parts, strict=True)}
