"""Tokens of one split, read from a zarr v3 group at memory-map speed.

Layout: group `<split>` with arrays `tokens` (uint16 when ids fit, else uint32; sharded), `doc_offsets` int64 [N + 1],
`doc_bytes` int64 [N] (UTF-8 bytes of each document's text), `doc_source` uint16 [N]; attributes vocab_size, bos_id,
eos_id, sources, tokens_sha256. A document is BOS + ids + EOS.

Two read paths return the same tokens. Uncompressed local shards are mapped, each chunk found through its shard's index,
and a window is a view or one copy. Everything else goes through zarr, decoded chunks kept in a cache.
"""

from __future__ import annotations

import functools
import hashlib
import mmap
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from feebcore.data.shard_index import REBUILD, read_shard_index
from feebcore.errors import ArtifactError
from feebcore.files import read_json

CACHE_BYTES = 256 << 20
VERIFY_BYTES = 256 << 20  # a split up to this size is hashed when it is opened (0.2 s at most)


class _Chunks(Protocol):
    """chunk(i) -> decoded tokens [chunk_tokens] of chunk i of the array; read-only."""

    def chunk(self, number: int) -> np.ndarray: ...


class TokenStore:
    """One split. `read(a, b)` and `tokens[a:b]` give tokens a..b-1 as a read-only array of `dtype`."""

    def __init__(self, path: Path, split: str, chunks: _Chunks, metadata: _ArrayMetadata, attributes: dict[str, Any]) -> None:
        self.path, self.split = Path(path), split
        self.num_tokens: int = metadata.num_tokens
        self.dtype: np.dtype = metadata.dtype
        self.chunk_tokens: int = metadata.chunk_tokens
        self.vocab_size: int = attributes["vocab_size"]
        self.bos_id: int = attributes["bos_id"]
        self.eos_id: int = attributes["eos_id"]
        self.sources: list[str] = attributes["sources"]
        self.tokens_sha256: str = attributes["tokens_sha256"]
        self._chunks = chunks

    @classmethod
    def open(cls, path: Path | str, split: str, mapped: bool = True, verify: bool | None = None) -> TokenStore:
        """The split `split` of the store at `path` (a `tokens.zarr` folder).

        mapped: False reads through zarr even where shards could be mapped. verify: compare the tokens with their
        recorded hash now; by default only splits up to VERIFY_BYTES. Raises ArtifactError when the store is not
        whole: unfinished, a shard missing, truncated or altered.
        """
        path = Path(path)
        group = path / split
        if not (group / "zarr.json").is_file():
            raise ArtifactError(f"{path} has no split {split!r}; {REBUILD}")
        attributes = read_json(group / "zarr.json").get("attributes", {})
        if "tokens_sha256" not in attributes:
            raise ArtifactError(f"{group} is unfinished; run its recipe again to continue it")
        metadata = _ArrayMetadata(group / "tokens")
        chunks: _Chunks = _MappedChunks(group / "tokens", metadata) if mapped and metadata.plain else _DecodedChunks(group / "tokens", metadata)
        store = cls(path, split, chunks, metadata, attributes)
        if verify or (verify is None and store.num_tokens * store.dtype.itemsize <= VERIFY_BYTES):
            store.verify()
        return store

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1, 0 <= start <= stop <= num_tokens: a read-only view inside one chunk, else a copy."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} are outside 0..{self.num_tokens} of split {self.split!r}")
        size = self.chunk_tokens
        first = start // size
        begin = first * size
        if stop <= begin + size:
            return self._chunks.chunk(first)[start - begin : stop - begin] if stop > start else np.empty(0, self.dtype)
        last = (stop - 1) // size
        pieces = [self._chunks.chunk(first)[start - begin :]]
        pieces += [self._chunks.chunk(i) for i in range(first + 1, last)]
        return np.concatenate([*pieces, self._chunks.chunk(last)[: stop - last * size]])

    def windows(self, starts: np.ndarray, length: int, dtype: Any = np.int64) -> np.ndarray:
        """[B, length] of `dtype`: row i holds the `length` tokens from starts[i]."""
        out = np.empty((len(starts), length), dtype=dtype)
        for row, start in zip(out, starts.tolist(), strict=True):
            row[:] = self.read(start, start + length)
        return out

    @property
    def tokens(self) -> Tokens:
        return Tokens(self)

    @functools.cached_property
    def doc_offsets(self) -> np.ndarray:
        """int64 [num_documents + 1]: document i is tokens doc_offsets[i]..doc_offsets[i + 1] - 1."""
        return self._array("doc_offsets")

    @functools.cached_property
    def doc_bytes(self) -> np.ndarray:
        """int64 [num_documents]: UTF-8 bytes of each document's text."""
        return self._array("doc_bytes")

    @functools.cached_property
    def doc_source(self) -> np.ndarray:
        """uint16 [num_documents]: position in `sources`."""
        return self._array("doc_source")

    @property
    def num_documents(self) -> int:
        return len(self.doc_offsets) - 1

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, BOS and EOS included."""
        return self.read(int(self.doc_offsets[number]), int(self.doc_offsets[number + 1]))

    def verify(self) -> None:
        """Raises ArtifactError when the tokens are not those that were written."""
        digest = hashlib.sha256()
        for begin in range(0, self.num_tokens, self.chunk_tokens):
            digest.update(block_hash(self.read(begin, min(begin + self.chunk_tokens, self.num_tokens))))
        if digest.hexdigest() != self.tokens_sha256:
            raise ArtifactError(f"a shard of {self.path / self.split} was altered (its tokens do not have the recorded SHA-256); {REBUILD}")

    def _array(self, name: str) -> np.ndarray:
        import zarr

        try:
            array = zarr.open_group(str(self.path), mode="r")[f"{self.split}/{name}"]
            return np.asarray(array[:])  # type: ignore[index]
        except (KeyError, FileNotFoundError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"array {name} of {self.path / self.split} cannot be read ({type(error).__name__}: {error}); {REBUILD}") from error


class Tokens:
    """Array-like over a store: `len`, `[a:b]` and `[i]`."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store
        self.dtype = store.dtype
        self.shape = (store.num_tokens,)

    def __len__(self) -> int:
        return self._store.num_tokens

    def __getitem__(self, key: slice | int) -> np.ndarray | int:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._store.read(start, max(start, stop)) if step == 1 else self._store.read(0, len(self))[key]
        index = key + len(self) if key < 0 else key
        return int(self._store.read(index, index + 1)[0])


def block_hash(tokens: np.ndarray) -> bytes:
    """SHA-256 of one chunk's tokens as little-endian bytes: the unit of `tokens_sha256`, whatever the shard size."""
    return hashlib.sha256(np.ascontiguousarray(tokens, dtype=tokens.dtype.newbyteorder("<")).tobytes()).digest()


class _ArrayMetadata:
    """What zarr.json of `tokens` says. plain: shards are uncompressed little-endian chunks with an index at the end."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "zarr.json").is_file():
            raise ArtifactError(f"{folder} has no zarr.json; {REBUILD}")
        data = read_json(folder / "zarr.json")
        try:
            codec = data["codecs"][0]
            inner = codec["configuration"]
            self.num_tokens: int = data["shape"][0]
            self.dtype = np.dtype(data["data_type"]).newbyteorder("<")
            self.shard_tokens: int = data["chunk_grid"]["configuration"]["chunk_shape"][0]
            self.chunk_tokens: int = inner["chunk_shape"][0]
            self.fill_value: int = data["fill_value"]
            layout = ([c["name"] for c in inner["codecs"]], [c["name"] for c in inner["index_codecs"]], inner.get("index_location", "end"))
            little = inner["codecs"][0].get("configuration", {}).get("endian") == "little"
            self.plain = len(data["codecs"]) == 1 and layout == (["bytes"], ["bytes", "crc32c"], "end") and little
        except (KeyError, IndexError, TypeError) as error:
            raise ArtifactError(f"{folder / 'zarr.json'} does not describe a sharded token array ({error!r}); {REBUILD}") from None
        self.num_shards = -(-self.num_tokens // self.shard_tokens)


class _MappedChunks:
    """Chunks as views of mapped shard files. Every index is checked when the store is opened."""

    def __init__(self, folder: Path, metadata: _ArrayMetadata) -> None:
        self._views: list[np.ndarray] = []
        per_shard = metadata.shard_tokens // metadata.chunk_tokens
        expected = metadata.chunk_tokens * metadata.dtype.itemsize
        empty = np.full(metadata.chunk_tokens, metadata.fill_value, dtype=metadata.dtype)
        empty.flags.writeable = False
        for number in range(metadata.num_shards):
            path = folder / "c" / str(number)
            index = read_shard_index(path, per_shard)
            with open(path, "rb") as stream:
                mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            for offset, size in zip(index.offsets.tolist(), index.sizes.tolist(), strict=True):
                if offset < 0:
                    self._views.append(empty)
                    continue
                if size != expected:
                    raise ArtifactError(f"shard {path} is altered (a chunk of {size} bytes where {expected} are due); {REBUILD}")
                self._views.append(np.frombuffer(mapped, dtype=metadata.dtype, count=metadata.chunk_tokens, offset=offset))

    def chunk(self, number: int) -> np.ndarray:
        return self._views[number]


class _DecodedChunks:
    """Chunks decoded by zarr, the most recently used kept in memory. Threads may share it; do not fork after use."""

    def __init__(self, folder: Path, metadata: _ArrayMetadata) -> None:
        import zarr

        self._array: Any = zarr.open_array(str(folder), mode="r")
        self._folder, self._metadata = folder, metadata
        self._capacity = max(4, CACHE_BYTES // (metadata.chunk_tokens * metadata.dtype.itemsize))
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        per_shard = metadata.shard_tokens // metadata.chunk_tokens
        for number in range(metadata.num_shards):
            read_shard_index(folder / "c" / str(number), per_shard)

    def chunk(self, number: int) -> np.ndarray:
        with self._lock:
            if (found := self._cache.get(number)) is not None:
                self._cache.move_to_end(number)
                return found
        begin = number * self._metadata.chunk_tokens
        try:
            decoded = np.asarray(self._array[begin : begin + self._metadata.chunk_tokens], dtype=self._metadata.dtype)
        except (RuntimeError, ValueError, OSError) as error:
            raise ArtifactError(f"{self._folder}: chunk {number} cannot be decoded ({error}); {REBUILD}") from error
        decoded.flags.writeable = False
        with self._lock:
            self._cache[number] = decoded
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return decoded
