"""The split as one stream of tokens, cut every seq_len tokens. Nothing is lost or padded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from feebcore.errors import DataError, plural
from feebcore.protocols import BuildContext, PackedSequences, Packing

if TYPE_CHECKING:
    from feeb_data.packings.concat import ConcatConfig


class ConcatPacking(Packing):
    """Sequence w is tokens w*T..w*T + T: consecutive sequences share one token, so that each token but the first is a
    target exactly once an epoch. At most T - 1 tokens at the end of the split are left out."""

    def __init__(self, config: ConcatConfig, context: BuildContext) -> None:
        store, seq_len = context.store, context.seq_len
        self.num_sequences = (store.num_tokens - 1) // seq_len if store.num_tokens else 0
        if self.num_sequences < 1:
            raise DataError(
                f"seq_len {seq_len} is longer than the text: split {store.split!r} has {plural(store.num_tokens, 'token')} and a sequence needs "
                f"{seq_len + 1}; lower seq_len or add documents"
            )
        self._store, self._seq_len, self._document_mask = store, seq_len, config.document_mask

    @property
    def statistics(self) -> dict[str, float]:
        offsets, span = self._store.doc_offsets, self._seq_len
        sequence = offsets[:-1] // span
        whole = (offsets[1:] - 1 <= (sequence + 1) * span) & (sequence < self.num_sequences)
        dropped = self._store.num_tokens - (self.num_sequences * span + 1)
        return {
            "sequences": self.num_sequences,
            "padding_share": 0.0,
            "dropped_share": dropped / self._store.num_tokens,
            "cut_documents_share": float(1 - whole.mean()),
        }

    def sequences(self, indices: np.ndarray) -> PackedSequences:
        """tokens int64 [B, T+1]. With document_mask also doc_ids int64 [B,T] (0, 1, … inside each sequence), positions
        int64 [B,T] (from 0 at each document's begin) and mask bool [B,T] (off where the target opens another document)."""
        starts = np.asarray(indices, dtype=np.int64) * self._seq_len
        tokens = self._store.read_batch(starts, self._seq_len + 1)
        if not self._document_mask:
            return PackedSequences(tokens)
        # a document's begin inside the sequence is marked, and marks are summed: a search for every token costs five times as much
        offsets = self._store.doc_offsets
        first_B, last_B = (np.searchsorted(offsets, ends, side="right") for ends in (starts, starts + self._seq_len))
        rows = np.repeat(np.arange(len(starts)), last_B - first_B)
        marks = np.concatenate([np.empty(0, dtype=np.int64), *(offsets[a:b] for a, b in zip(first_B.tolist(), last_B.tolist(), strict=True))])
        begins_BT1 = np.zeros(tokens.shape, dtype=np.int64)
        begins_BT1[rows, marks - starts[rows]] = marks - starts[rows]
        doc_ids_BT1 = np.cumsum(begins_BT1 > 0, axis=1)
        inputs_BT = doc_ids_BT1[:, :-1]
        return PackedSequences(
            tokens,
            mask=inputs_BT == doc_ids_BT1[:, 1:],
            doc_ids=inputs_BT,
            positions=np.arange(self._seq_len) - np.maximum.accumulate(begins_BT1, axis=1)[:, :-1],
        )
