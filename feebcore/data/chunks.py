"""Access to the tokens of one zarr array: mapped from local files, or decoded by zarr and kept in a cache.

Both give *pieces*: a piece is a stretch of the array that lies in memory as one array, so that a row inside a piece
is a view or one copy. Mapped pieces are runs of chunks that follow each other in a shard file, usually whole shards.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from feebcore.data.shard_index import REBUILD, read_shard_index
from feebcore.errors import ArtifactError

CACHE_BYTES = 256 << 20
FETCH_THREADS = 8
ROWS_WORTH_INDEXING = 12


class Pieces(Protocol):
    """piece(token) -> (begin, tokens): the read-only piece that holds token number `token` and where it begins.
    fill(out [B, L], starts [B]): row i holds the tokens from starts[i]."""

    def piece(self, token: int) -> tuple[int, np.ndarray]: ...
    def fill(self, out: np.ndarray, starts: np.ndarray) -> None: ...


class ArrayMetadata:
    """What zarr.json of `tokens` says. plain: shards are uncompressed little-endian chunks with an index at the end.

    where: file or address, for messages. Raises ArtifactError when `data` describes no sharded array of tokens.
    """

    def __init__(self, data: dict[str, Any], where: str) -> None:
        try:
            inner = data["codecs"][0]["configuration"]
            self.num_tokens: int = data["shape"][0]
            self.dtype = np.dtype(data["data_type"]).newbyteorder("<")
            self.shard_tokens: int = data["chunk_grid"]["configuration"]["chunk_shape"][0]
            self.chunk_tokens: int = inner["chunk_shape"][0]
            self.fill_value: int = data["fill_value"]
            layout = ([c["name"] for c in inner["codecs"]], [c["name"] for c in inner["index_codecs"]], inner.get("index_location", "end"))
            little = inner["codecs"][0].get("configuration", {}).get("endian") == "little"
            self.plain = len(data["codecs"]) == 1 and layout == (["bytes"], ["bytes", "crc32c"], "end") and little
        except (KeyError, IndexError, TypeError) as error:
            raise ArtifactError(f"{where} does not describe a sharded token array ({error!r}); {REBUILD}") from None
        self.num_shards = -(-self.num_tokens // self.shard_tokens)
        self.per_shard = self.shard_tokens // self.chunk_tokens


def block_hash(tokens: np.ndarray) -> bytes:
    """SHA-256 of one chunk's tokens as little-endian bytes: the unit of `tokens_sha256`, whatever the shard size."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype=tokens.dtype.newbyteorder("<")).tobytes()).digest()


def read_pieces(pieces: Pieces, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Tokens start..stop-1: a read-only view where they lie in one piece, else a copy."""
    if stop <= start:
        return np.empty(0, dtype)
    parts = []
    while True:
        begin, tokens = pieces.piece(start)
        parts.append(tokens[start - begin : stop - begin])
        start = begin + len(tokens)
        if start >= stop:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)


class MappedChunks:
    """Pieces of mapped shard files. Every index is checked when the store is opened. Safe to use after a fork."""

    def __init__(self, folder: Path, metadata: ArrayMetadata) -> None:
        begins: list[int] = []
        self._arrays: list[np.ndarray] = []
        chunk, expected = metadata.chunk_tokens, metadata.chunk_tokens * metadata.dtype.itemsize
        empty = np.full(chunk, metadata.fill_value, dtype=metadata.dtype)
        empty.flags.writeable = False
        for number in range(metadata.num_shards):
            path = folder / "c" / str(number)
            index = read_shard_index(path, metadata.per_shard)
            if (wrong := index.sizes[(index.offsets >= 0) & (index.sizes != expected)]).size:
                raise ArtifactError(f"shard {path} is altered (a chunk of {wrong[0]} bytes where {expected} are due); {REBUILD}")
            with open(path, "rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            breaks = np.flatnonzero((np.diff(index.offsets) != expected) | (index.offsets[1:] < 0) | (index.offsets[:-1] < 0)) + 1
            for run in np.split(np.arange(metadata.per_shard), breaks):
                offset = int(index.offsets[run[0]])
                begins.append(number * metadata.shard_tokens + int(run[0]) * chunk)
                count = len(run) * chunk
                self._arrays.append(empty if offset < 0 else np.frombuffer(mapped, dtype=metadata.dtype, count=count, offset=offset))
        self._begins = np.array(begins, dtype=np.int64)
        self._lengths = np.array([len(a) for a in self._arrays], dtype=np.int64)

    def piece(self, token: int) -> tuple[int, np.ndarray]:
        number = int(self._begins.searchsorted(token, side="right")) - 1
        return int(self._begins[number]), self._arrays[number]

    def fill(self, out: np.ndarray, starts: np.ndarray) -> None:
        """Many rows of one piece are taken by one indexing of its overlapping rows, few (under ROWS_WORTH_INDEXING a
        piece) one by one, whichever is faster."""
        length = out.shape[1]
        piece_B = self._begins.searchsorted(starts, side="right") - 1
        local_B = starts - self._begins[piece_B]
        inside_B = local_B + length <= self._lengths[piece_B]
        if len(out) >= ROWS_WORTH_INDEXING * min(len(self._arrays), len(out)):
            for number in np.unique(piece_B[inside_B]).tolist():
                rows = np.flatnonzero(inside_B & (piece_B == number))
                array = self._arrays[number]
                step = array.strides[0]
                overlapping = np.lib.stride_tricks.as_strided(array, (len(array) - length + 1, length), (step, step), writeable=False)
                out[rows] = overlapping[local_B[rows]]
        else:
            for row, number, local, inside in zip(out, piece_B.tolist(), local_B.tolist(), inside_B.tolist(), strict=True):
                if inside:
                    row[:] = self._arrays[number][local : local + length]
        for row_number in np.flatnonzero(~inside_B).tolist():
            out[row_number] = read_pieces(self, int(starts[row_number]), int(starts[row_number]) + length, out.dtype)


class DecodedChunks:
    """Chunks decoded by zarr from a folder or any address fsspec knows, the most recently used kept in memory.

    hashes: of each chunk, checked as it is read. Threads may share it. A forked child begins with an empty cache and
    an array of its own, since locks and connections of its parent mean nothing there.
    """

    def __init__(self, where: str, metadata: ArrayMetadata, open_array: Any, hashes: Sequence[bytes] | None = None) -> None:
        self._where, self._metadata, self._open_array, self._hashes = where, metadata, open_array, hashes
        self._capacity = max(4, CACHE_BYTES // (metadata.chunk_tokens * metadata.dtype.itemsize))
        self._begin()

    def piece(self, token: int) -> tuple[int, np.ndarray]:
        number = token // self._metadata.chunk_tokens
        return number * self._metadata.chunk_tokens, self._chunk(number)

    def fill(self, out: np.ndarray, starts: np.ndarray) -> None:
        """Rows by place, so that each chunk is decoded once however small the cache; the chunks are decoded by several threads."""
        length, size = out.shape[1], self._metadata.chunk_tokens
        needed = np.unique(np.concatenate([starts // size, (starts + length - 1) // size]))[: self._capacity].tolist()
        missing = [n for n in needed if n not in self._cache]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(FETCH_THREADS, len(missing)), thread_name_prefix="chunks") as threads:
                list(threads.map(self._chunk, missing))
        for row in np.argsort(starts, kind="stable").tolist():
            out[row] = read_pieces(self, int(starts[row]), int(starts[row]) + length, out.dtype)

    def _begin(self) -> None:
        self._process = os.getpid()
        self._array: Any = self._open_array()
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def _chunk(self, number: int) -> np.ndarray:
        if self._process != os.getpid():
            self._begin()
        with self._lock:
            if (cached := self._cache.get(number)) is not None:
                self._cache.move_to_end(number)
                return cached
        begin = number * self._metadata.chunk_tokens
        try:
            decoded = np.asarray(self._array[begin : begin + self._metadata.chunk_tokens], dtype=self._metadata.dtype)
        except (RuntimeError, ValueError, OSError) as error:
            remedy = REBUILD if "://" not in self._where else "see that all files are there and that the server answers Range requests"
            raise ArtifactError(f"{self._where}: chunk {number} cannot be decoded ({type(error).__name__}: {error}); {remedy}") from error
        if self._hashes is not None and block_hash(decoded) != self._hashes[number]:
            raise ArtifactError(f"{self._where}: chunk {number} was altered (it does not have the recorded SHA-256); copy the store there again")
        decoded.flags.writeable = False
        with self._lock:
            self._cache[number] = decoded
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return decoded
