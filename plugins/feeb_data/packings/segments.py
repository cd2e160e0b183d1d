"""Sequences that are put together from segments of documents: what the packings bestfit and bos_aligned share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feebcore.protocols import PackedSequences, Packing

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore


@dataclass(frozen=True)
class SegmentIndex:
    """Sequence w holds segments first[w]..first[w + 1] - 1, one after another; segment p is the `length[p]` tokens of the
    split from `start[p]`, all of one document. first int64 [W + 1], start int64 [P], length int32 [P]."""

    first: np.ndarray
    start: np.ndarray
    length: np.ndarray

    @property
    def num_sequences(self) -> int:
        return len(self.first) - 1


class SegmentPacking(Packing):
    """Sequences of an index. A target counts when it lies in the same segment as its input; what a sequence lacks is padding
    (EOS, document -1)."""

    def __init__(self, store: TokenStore, seq_len: int, document_mask: bool, index: SegmentIndex) -> None:
        self.num_sequences = index.num_sequences
        self._store, self._seq_len, self._document_mask, self._index = store, seq_len, document_mask, index

    def sequences(self, indices: np.ndarray) -> PackedSequences:
        """tokens int64 [B, T+1], mask bool [B,T]. With document_mask also doc_ids and positions int64 [B,T]."""
        index, width = self._index, self._seq_len + 1
        indices = np.asarray(indices, dtype=np.int64)
        first_B, counts_B = index.first[indices], index.first[indices + 1] - index.first[indices]
        rows_P = np.repeat(np.arange(len(indices)), counts_B)
        rank_P = _count_up(counts_B)
        segments_P = np.repeat(first_B, counts_B) + rank_P
        start_P, length_P = index.start[segments_P], index.length[segments_P].astype(np.int64)
        ends_P = np.cumsum(length_P)
        before_row_P = np.repeat((ends_P - length_P)[np.cumsum(counts_B) - counts_B], counts_B)
        place_P = rows_P * width + ends_P - length_P - before_row_P  # in the flattened sequences
        tokens = np.full(len(indices) * width, self._store.eos_id, dtype=np.int64)
        for place, start, length in zip(place_P.tolist(), start_P.tolist(), length_P.tolist(), strict=True):
            tokens[place : place + length] = self._store.read(start, start + length)
        positions = _count_up(length_P)
        filled = np.repeat(place_P, length_P) + positions
        doc_ids_BT1 = _scattered(filled, np.repeat(rank_P, length_P), -1, (len(indices), width))
        mask_BT = (doc_ids_BT1[:, 1:] == doc_ids_BT1[:, :-1]) & (doc_ids_BT1[:, 1:] >= 0)
        packed = PackedSequences(tokens.reshape(len(indices), width), mask=mask_BT)
        if self._document_mask:
            packed.doc_ids = doc_ids_BT1[:, :-1]
            packed.positions = _scattered(filled, positions, 0, (len(indices), width))[:, :-1]
        return packed

    @property
    def statistics(self) -> dict[str, float]:
        index, offsets = self._index, self._store.doc_offsets
        used = int(index.length.sum())
        documents = np.searchsorted(offsets, index.start, side="right") - 1
        whole = np.zeros(self._store.num_documents, dtype=bool)
        whole[documents[index.length == np.diff(offsets)[documents]]] = True
        covered = np.zeros(self._store.num_documents, dtype=np.int64)  # segments of one document overlap by the token between them
        np.add.at(covered, documents, index.length - (index.start != offsets[documents]))
        size = self.num_sequences * (self._seq_len + 1)
        return {
            "sequences": self.num_sequences,
            "padding_share": 1 - used / size,
            "dropped_share": 1 - int(covered.sum()) / self._store.num_tokens,
            "cut_documents_share": float(1 - whole.mean()),
        }


def _count_up(counts: np.ndarray) -> np.ndarray:
    """0..c-1 for each c of `counts`, joined."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def _scattered(places: np.ndarray, values: np.ndarray, rest: int, shape: tuple[int, int]) -> np.ndarray:
    flat = np.full(shape[0] * shape[1], rest, dtype=np.int64)
    flat[places] = values
    return flat.reshape(shape)
