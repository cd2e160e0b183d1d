"""Byte-level BPE by tiktoken, on several threads.

tiktoken merges the neighbors whose union has the lowest id, again and again. It knows no special token here, so none can be
parsed out of text, and it works without the interpreter's lock: threads help.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MAX_THREADS = 16
GROUP_CHARS = 32 * 1024  # a thread's unit of work: small texts go together


class TiktokenEncoding:
    """Texts to ids and back. ranks: bytes of each token -> id, in order of merging. Texts must be free of lone surrogates."""

    def __init__(self, ranks: dict[bytes, int], pattern: str) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding("feeb", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._pool: ThreadPoolExecutor | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n]; over all cores this process may use, or one when TOKENIZERS_PARALLELISM is off."""
        threads = num_threads()
        if threads == 1 or sum(map(len, texts)) < 2 * GROUP_CHARS:
            return self._encode(texts)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        return list(itertools.chain.from_iterable(self._pool.map(self._encode, _groups(texts))))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(ids)

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self._encoding.encode_ordinary(text), dtype=np.int32) for text in texts]


def num_threads() -> int:
    """Threads to encode with: cores this process may use, one when TOKENIZERS_PARALLELISM is off."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("false", "0", "off", "no", "n", "f"):
        return 1
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def _groups(texts: Sequence[str]) -> list[Sequence[str]]:
    """Runs of neighbors of about GROUP_CHARS characters each."""
    groups, begin, size = [], 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= GROUP_CHARS or end == len(texts):
            groups.append(texts[begin:end])
            begin, size = end, 0
    return groups
