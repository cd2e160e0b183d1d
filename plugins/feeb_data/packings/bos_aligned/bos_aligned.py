"""Every sequence begins with BOS and is full; what does not fit is cropped away.

Of `buffer` documents at hand the longest that still fits goes next; when none does, the shortest fills the sequence and
its rest is lost. nanochat's loader does this while reading, so its place cannot be saved; here the same choice is made
once for the whole split, documents in a fixed shuffled order.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from typing import TYPE_CHECKING

import numpy as np

from feeb_data.packings.segments import SegmentIndex, SegmentPacking
from feebcore.data.index_cache import saved_index
from feebcore.data.permutation import FeistelPermutation
from feebcore.errors import DataError, plural

if TYPE_CHECKING:
    from feeb_data.packings.bos_aligned import BosAlignedConfig
    from feebcore.protocols import BuildContext


def make_index(offsets: np.ndarray, width: int, buffer: int) -> dict[str, np.ndarray]:
    """Arrays of a SegmentIndex for sequences of `width` tokens. A sequence that could not be filled at the end is left out."""
    number = len(offsets) - 1
    order = FeistelPermutation(number, 0)(np.arange(number)) if number else np.empty(0, dtype=np.int64)
    waiting = list(zip(np.diff(offsets)[order].tolist(), order.tolist(), strict=True))[::-1]
    at_hand: list[tuple[int, int]] = []  # (tokens, document), the shortest first
    first, document, length = [0], [], []
    while True:
        room = width
        while room:
            while waiting and len(at_hand) < buffer:
                insort(at_hand, waiting.pop())
            if not at_hand:
                break
            place = bisect_right(at_hand, (room, number)) - 1
            size, chosen = at_hand.pop(max(0, place))
            document.append(chosen)
            length.append(min(size, room))
            room -= length[-1]
        if room:
            del document[first[-1] :], length[first[-1] :]
            break
        first.append(len(document))
    start = offsets[np.array(document, dtype=np.int64)]
    return {"first": np.array(first, dtype=np.int64), "start": start.astype(np.int64), "length": np.array(length, dtype=np.int32)}


def bos_aligned(config: BosAlignedConfig, context: BuildContext) -> SegmentPacking:
    """Raises DataError when the split does not fill one sequence."""
    store, seq_len = context.store, context.seq_len
    key = {"seq_len": seq_len, "buffer": config.buffer, "method": 1}
    arrays = saved_index(store, "bos_aligned", key, lambda: make_index(np.asarray(store.doc_offsets), seq_len + 1, config.buffer))
    index = SegmentIndex(**arrays)
    if not index.num_sequences:
        raise DataError(
            f"seq_len {seq_len} is longer than the text: split {store.split!r} has {plural(store.num_tokens, 'token')} and a sequence needs "
            f"{seq_len + 1}; lower seq_len or add documents"
        )
    return SegmentPacking(store, seq_len, config.document_mask, index)
