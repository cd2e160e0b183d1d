"""Some documents of a token store as a store of their own: one source of a mixture, one of several validation sets."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore


class StoreView:
    """Documents first..stop-1 of `store`, with what a TokenStore offers to packings and scorers. Nothing is copied."""

    def __init__(self, store: TokenStore, first: int, stop: int) -> None:
        if not 0 <= first <= stop <= store.num_documents:
            raise ValueError(f"documents {first}..{stop} are outside 0..{store.num_documents}")
        self._store, self._documents = store, slice(first, stop)
        self._begin, self._end = int(store.doc_offsets[first]), int(store.doc_offsets[stop])
        self.path, self.split, self.dtype = store.path, store.split, store.dtype
        self.vocab_size, self.bos_id, self.eos_id, self.sources = store.vocab_size, store.bos_id, store.eos_id, store.sources
        self.num_tokens, self.num_documents = self._end - self._begin, stop - first
        self.tokens_sha256 = f"{store.tokens_sha256}[{first}:{stop}]"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1 of the view."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} are outside 0..{self.num_tokens} of a part of split {self.split!r}")
        return self._store.read(self._begin + start, self._begin + stop)

    def read_batch(self, starts: np.ndarray, length: int, dtype: Any = np.int64) -> np.ndarray:
        """[B, length] of `dtype`: row i holds the `length` tokens from starts[i]."""
        starts = np.asarray(starts, dtype=np.int64)
        if starts.size and not (int(starts.min()) >= 0 and int(starts.max()) + length <= self.num_tokens):
            raise IndexError(f"sequences of {length} from {starts.min()}..{starts.max()} are outside 0..{self.num_tokens} of a part of split {self.split!r}")
        return self._store.read_batch(self._begin + starts, length, dtype)

    @functools.cached_property
    def doc_offsets(self) -> np.ndarray:
        """int64 [num_documents + 1], from 0."""
        return self._store.doc_offsets[self._documents.start : self._documents.stop + 1] - self._begin

    @property
    def doc_bytes(self) -> np.ndarray:
        return self._store.doc_bytes[self._documents]

    @property
    def doc_source(self) -> np.ndarray:
        return self._store.doc_source[self._documents]

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, BOS and EOS included."""
        return self.read(int(self.doc_offsets[number]), int(self.doc_offsets[number + 1]))


def source_views(store: TokenStore) -> dict[str, StoreView]:
    """Every source that has documents in the store, by name. Raises DataError where a source's documents do not lie together."""
    codes = store.doc_source
    begins = np.flatnonzero(np.diff(codes, prepend=-1)) if len(codes) else np.empty(0, dtype=np.int64)
    stops = [*begins[1:].tolist(), len(codes)]
    views: dict[str, StoreView] = {}
    for begin, stop in zip(begins.tolist(), stops, strict=True) if len(codes) else ():
        name = store.sources[int(codes[begin])]
        if name in views:
            raise DataError(f"documents of source {name!r} do not lie together in {store.path}/{store.split}; stage shard sorts them by source")
        views[name] = StoreView(store, begin, stop)
    return views


def source_view(store: TokenStore, name: str) -> StoreView:
    """One source of the store. Raises DataError when it has no documents there."""
    views = source_views(store)
    if name not in views:
        raise DataError(f"split {store.split!r} of {store.path} has no documents of source {name!r}; {did_you_mean(name, views)}")
    return views[name]


def validation_sets(store: TokenStore) -> dict[str, StoreView]:
    """The validation split by source, for scores of their own; empty when it has one source, whose score is the whole split's."""
    return source_views(store) if len(np.unique(store.doc_source)) > 1 else {}


def scores_by_source(store: TokenStore, scores: Any, chosen: np.ndarray | None = None) -> dict[str, Any]:
    """One Score a source out of DocumentScores (feebcore/evaluate/scorer.py) of the whole split, or of documents `chosen`:
    several validation sets for the price of one. Empty when there is one source."""
    codes = store.doc_source if chosen is None else store.doc_source[chosen]
    present = np.unique(codes).tolist()
    if len(present) < 2:
        return {}
    return {store.sources[code]: scores.where(codes == code).total() for code in present}
