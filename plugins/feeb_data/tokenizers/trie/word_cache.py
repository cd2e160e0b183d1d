"""Texts to ids by way of their words, each distinct word encoded once and remembered."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from itertools import chain

import numpy as np

MAX_REMEMBERED = 400_000  # distinct words, about 100 MB


class WordCache:
    """ids(words) concatenates encode_word of each. encode_word must depend on its argument alone."""

    def __init__(self, encode_word: Callable[[str], list[int]]) -> None:
        self._encode_word = encode_word
        self._lock = threading.Lock()
        self._number: dict[str, int] = {}  # word -> its place in _begin and _length, which say where in _ids its ids lie
        self._num_ids = 0
        self._length, self._begin, self._ids = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(4096, np.int32)

    def ids(self, words: list[str]) -> np.ndarray:
        """int32 [n]."""
        with self._lock:
            distinct = set(words)
            if new := [word for word in distinct if word not in self._number]:
                if len(self._number) + len(new) > MAX_REMEMBERED:
                    self._forget()
                    new = list(distinct)
                self._remember(new)
            which = np.fromiter(map(self._number.__getitem__, words), dtype=np.int64, count=len(words))
            lengths = self._length[which]
            before = np.cumsum(lengths) - lengths  # a ragged gather: each word's run of ids out of the flat list
            places = np.arange(int(lengths.sum())) + np.repeat(self._begin[which] - before, lengths)
            return self._ids[places]

    def _remember(self, words: Iterable[str]) -> None:
        words = list(words)
        encoded = [self._encode_word(word) for word in words]
        first, lengths = len(self._number), np.fromiter(map(len, encoded), dtype=np.int64, count=len(words))
        self._number.update(zip(words, range(first, first + len(words)), strict=True))
        self._length = _grown(self._length, first, lengths)
        self._begin = _grown(self._begin, first, self._num_ids + np.cumsum(lengths) - lengths)
        self._ids = _grown(self._ids, self._num_ids, np.fromiter(chain.from_iterable(encoded), dtype=np.int32))
        self._num_ids += int(lengths.sum())

    def _forget(self) -> None:
        self._number.clear()
        self._num_ids = 0


def _grown(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """`array` with `more` written from `used` on; its capacity doubles when it is too small."""
    if used + len(more) > len(array):
        array = np.concatenate([array[:used], np.empty(max(used, 2 * len(more)), array.dtype)])
    array[used : used + len(more)] = more
    return array
