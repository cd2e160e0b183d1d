"""Token store to batches: stateless in the step, so that resuming is exact and costs nothing.

Sample i of a run is slot i % batch_size of step i // batch_size. The data order says which sequence a sample gets,
the packing what a sequence holds; ranks take the slots rank::world. The global stream of batches is
therefore the same for any number of ranks or micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.config import DataOrderConfig
from feebcore.data.prefetch import Prefetch
from feebcore.data.views import source_views
from feebcore.errors import DataError
from feebcore.parts import Part
from feebcore.protocols import Batch, BuildContext, DataOrder, PackedSequences, Packing

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore

SAMPLES_ORDERED_AT_ONCE = 2048

__all__ = ["BatchSource", "Prefetch", "make_batches"]


def make_batches(store: TokenStore, packing: Part, data_order: Part, batch_size: int, seq_len: int, seed: int, max_steps: int = 0) -> BatchSource:
    """Build the packing and the data order over `store` and join them. max_steps: of the run; data orders that change on the way
    need it. Raises DataError when the text is shorter than a sequence."""
    assert isinstance(data_order.config, DataOrderConfig)
    context = BuildContext(store=store, seq_len=seq_len, batch_size=batch_size, seed=seed, total_steps=max_steps)
    sources: dict[str, range] = {}
    packed: Packing
    if data_order.config.by_source:
        packed = PackedBySource(store, packing, seq_len, data_order.config.source_names())
        sources = packed.sources
    else:
        packed = packing.build(context)
    order = data_order.build(context, packing=packed, num_sequences=packed.num_sequences, sources=sources)
    return BatchSource(store, packed, order, batch_size, seq_len)


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
        by_source = self.data_order.epochs(samples)
        counts: dict[str, Any] = {"sequences": self.num_sequences, "epochs": samples / self.num_sequences}
        return counts | ({"epochs_by_source": by_source} if by_source else {}) | self.packing.statistics

    def same_steps(self, other: BatchSource, steps: int) -> int:
        """How many of the first `steps` have the same sequences in `other`, which has the same packing."""
        return next((step for step in range(steps) if not np.array_equal(self._sequences(step), other._sequences(step))), steps)

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
        ordered = self._ordered.get(block)
        if ordered is None:
            begin = block * steps * self.batch_size
            ordered = self.data_order(np.arange(begin, begin + steps * self.batch_size, dtype=np.int64)).reshape(steps, self.batch_size)
            if len(self._ordered) >= 4:
                self._ordered.clear()
            self._ordered[block] = ordered
        return ordered[number]


class PackedBySource(Packing):
    """A packing over each source by itself; sequences are numbered source after source. `sources`: the sequences of each.

    names: sources that are used, none others are packed; empty: all.
    """

    def __init__(self, store: TokenStore, packing: Part, seq_len: int, names: Sequence[str] = ()) -> None:
        self._parts: list[Packing] = []
        self.sources: dict[str, range] = {}
        for name, view in source_views(store).items():
            if names and name not in names:
                continue
            try:
                part = packing.build(BuildContext(store=view, seq_len=seq_len))
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
        joined: PackedSequences | None = None
        for number in np.unique(owner_B).tolist():
            rows = np.flatnonzero(owner_B == number)
            packed = self._parts[number].sequences(indices[rows] - self._begins[number])
            if joined is None:
                fields = {k: None if v is None else np.empty((len(indices), v.shape[1]), v.dtype) for k, v in vars(packed).items()}
                joined = replace(packed, **fields)  # type: ignore[arg-type]
            for key, value in vars(packed).items():
                if value is not None:
                    getattr(joined, key)[rows] = value
        return self._parts[0].sequences(indices) if joined is None else joined

    @property
    def statistics(self) -> dict[str, Any]:
        """By source."""
        return {name: part.statistics for name, part in zip(self.sources, self._parts, strict=True)}
