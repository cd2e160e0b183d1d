"""Documents are cut only where they are longer than a sequence, and the pieces are packed tightly.

Best-fit decreasing (Ding et al. 2024, arXiv:2404.10830): pieces from the longest to the shortest, each into the sequence
with the least room that is enough. Sequences with equal room are interchangeable, so whole groups of pieces of one length
are placed at once: the work grows with the number of pieces only inside numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feeb_data.packings.segments import SegmentIndex, SegmentPacking
from feebcore.data.index_cache import saved_index
from feebcore.errors import DataError

if TYPE_CHECKING:
    from feeb_data.packings.bestfit import BestfitConfig
    from feebcore.protocols import BuildContext


def cut_documents(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [P], length [P]) of pieces of at most seq_len + 1 tokens. Neighboring pieces of a document share one token,
    so that each token but a document's first is a target exactly once."""
    targets = np.diff(offsets) - 1
    counts = np.maximum(-(-targets // seq_len), 0)
    document = np.repeat(np.arange(len(targets)), counts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    length = np.minimum(targets[document] - number * seq_len, seq_len) + 1
    return offsets[document] + number * seq_len, length


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Bin [N] of each item so that no bin holds more than `capacity`: best-fit decreasing. lengths [N] from 1 to capacity."""
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), dtype=np.int64)
    open_bins: dict[int, list[np.ndarray]] = {}  # room -> bins that have it
    nonempty = np.zeros(capacity + 1, dtype=bool)
    num_bins = 0
    values, begins, counts = np.unique(-lengths[order], return_index=True, return_counts=True)
    for length, begin, count in zip((-values).tolist(), begins.tolist(), counts.tolist(), strict=True):
        items = order[begin : begin + count]
        while len(items):
            room = length + int(nonempty[length:].argmax())
            if nonempty[room]:
                having = np.concatenate(open_bins.pop(room))
                nonempty[room] = False
            else:  # all are too full
                room = capacity
                needed = -(-len(items) // (capacity // length))
                having = np.arange(num_bins, num_bins + needed)
                num_bins += needed
            fit = room // length  # a bin that got an item and still has room for another is the best fit again
            used = min(len(having), len(items) // fit)
            bins[items[: used * fit]] = np.repeat(having[:used], fit)
            items, left = items[used * fit :], having[used:]
            _put(open_bins, nonempty, room - fit * length, having[:used])
            if len(left) and len(items):  # fewer than `fit` are left over
                bins[items] = left[0]
                _put(open_bins, nonempty, room - len(items) * length, left[:1])
                items, left = items[:0], left[1:]
            _put(open_bins, nonempty, room, left)
    return bins


def _put(open_bins: dict[int, list[np.ndarray]], nonempty: np.ndarray, room: int, bins: np.ndarray) -> None:
    if room and len(bins):
        open_bins.setdefault(room, []).append(bins)
        nonempty[room] = True


def make_index(offsets: np.ndarray, seq_len: int) -> dict[str, np.ndarray]:
    """Arrays of a SegmentIndex. Sequences are in the order of the first token they hold."""
    start, length = cut_documents(offsets, seq_len)
    bins = best_fit_decreasing(length, seq_len + 1)
    earliest = np.full(int(bins.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    np.minimum.at(earliest, bins, start)
    sequence = np.argsort(np.argsort(earliest, kind="stable"), kind="stable")[bins]
    order = np.lexsort((start, sequence))
    first = np.concatenate([[0], np.cumsum(np.bincount(sequence, minlength=len(earliest)))])
    return {"first": first.astype(np.int64), "start": start[order].astype(np.int64), "length": length[order].astype(np.int32)}


def bestfit(config: BestfitConfig, context: BuildContext) -> SegmentPacking:
    """Raises DataError when the split has no document of two tokens."""
    store, seq_len = context.store, context.seq_len
    index = SegmentIndex(**saved_index(store, "bestfit", {"seq_len": seq_len, "method": 1}, lambda: make_index(np.asarray(store.doc_offsets), seq_len)))
    if not index.num_sequences:
        raise DataError(f"split {store.split!r} has no document to make a sequence of; add documents")
    return SegmentPacking(store, seq_len, config.document_mask, index)
