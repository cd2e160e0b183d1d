"""Tokens of one split, read from a zarr v3 group at memory-map speed.

Layout: group `<split>` with arrays `tokens` (uint16 when ids fit, else uint32; sharded), `doc_offsets` int64 [N + 1],
`doc_bytes` int64 [N] (UTF-8 bytes of each document's text), `doc_source` uint16 [N]; attributes format, vocab_size,
bos_id, eos_id, sources, tokens_sha256. A document is BOS + ids + EOS.

Two read paths return the same tokens (feebcore/data/chunks.py). Uncompressed local shards are mapped, each chunk found
through its shard's index. Everything else, compressed or at an address (http://, s3://, memory://, whatever fsspec knows),
goes through zarr, decoded chunks kept in a cache.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.data.chunks import ArrayMetadata, DecodedChunks, MappedChunks, Pieces, block_hash, read_pieces
from feebcore.data.shard_index import REBUILD, read_shard_index
from feebcore.errors import ArtifactError
from feebcore.files import read_json

__all__ = ["TokenStore", "Tokens", "block_hash"]

FORMAT = 2
"""Of the layout. 1 had a split `val` and no number."""

VERIFY_BYTES = 256 << 20  # a split up to this size is hashed when it is opened (0.2 s at most on a local disk)


class TokenStore:
    """One split. `read(a, b)` and `tokens[a:b]` give tokens a..b-1 as a read-only array of `dtype`."""

    def __init__(self, path: str, split: str, pieces: Pieces, metadata: ArrayMetadata, attributes: dict[str, Any]) -> None:
        self.path, self.split = path, split
        self.num_tokens: int = metadata.num_tokens
        self.dtype: np.dtype = metadata.dtype
        self.chunk_tokens: int = metadata.chunk_tokens
        self.vocab_size: int = attributes["vocab_size"]
        self.bos_id: int = attributes["bos_id"]
        self.eos_id: int = attributes["eos_id"]
        self.sources: list[str] = attributes["sources"]
        self.tokens_sha256: str = attributes["tokens_sha256"]
        self._pieces = pieces

    @classmethod
    def open(cls, path: Path | str, split: str, mapped: bool = True, verify: bool | None = None, ledger: Path | None = None) -> TokenStore:
        """The split `split` of the store at `path`: a `tokens.zarr` folder, or the address of one.

        mapped: False reads through zarr even where shards could be mapped. Chunks from an address are checked one by one as
        they come, by the hashes in `ledger` (default: `ledger.jsonl` next to the store). verify: compare all tokens with their
        recorded hash now; by default splits up to VERIFY_BYTES of which no chunk's hash is known. Raises ArtifactError when
        the store is not whole: unfinished, a shard missing, truncated or altered.
        """
        if is_address(path):
            return _open_address(cls, str(path).rstrip("/"), split, verify, ledger)
        group = Path(path) / split
        if split == "validation" and not group.exists() and (Path(path) / "val").exists():
            raise ArtifactError(_other_format(str(path), 1))
        if not (group / "zarr.json").is_file():
            raise ArtifactError(f"{path} has no split {split!r}; {REBUILD}")
        attributes = read_json(group / "zarr.json").get("attributes", {})
        _require_whole(attributes, str(group))
        folder = group / "tokens"
        if not (folder / "zarr.json").is_file():
            raise ArtifactError(f"{folder} has no zarr.json; {REBUILD}")
        metadata = ArrayMetadata(read_json(folder / "zarr.json"), str(folder / "zarr.json"))
        if mapped and metadata.plain:
            store = cls(str(path), split, MappedChunks(folder, metadata), metadata, attributes)
        else:
            for number in range(metadata.num_shards):
                read_shard_index(folder / "c" / str(number), metadata.per_shard)
            decoded = DecodedChunks(str(folder), metadata, functools.partial(_open_array, str(path), f"{split}/tokens"))
            store = cls(str(path), split, decoded, metadata, attributes)
        if store.small if verify is None else verify:
            store.verify()
        return store

    @property
    def small(self) -> bool:
        return self.num_tokens * self.dtype.itemsize <= VERIFY_BYTES

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start..stop-1, 0 <= start <= stop <= num_tokens: a read-only view where they lie together, else a copy."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}..{stop} are outside 0..{self.num_tokens} of split {self.split!r}")
        return read_pieces(self._pieces, start, stop, self.dtype)

    def read_batch(self, starts: np.ndarray, length: int, dtype: Any = np.int64) -> np.ndarray:
        """[B, length] of `dtype`: row i holds the `length` tokens from starts[i]."""
        starts = np.asarray(starts, dtype=np.int64)
        if starts.size and not (int(starts.min()) >= 0 and int(starts.max()) + length <= self.num_tokens):
            raise IndexError(f"sequences of {length} from {starts.min()}..{starts.max()} are outside 0..{self.num_tokens} of split {self.split!r}")
        out = np.empty((len(starts), length), dtype=dtype)
        self._pieces.fill(out, starts)
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
            raise ArtifactError(f"a shard of {self.path}/{self.split} was altered (its tokens do not have the recorded SHA-256); {REBUILD}")

    def _array(self, name: str) -> np.ndarray:
        try:
            return np.asarray(_open_array(self.path, f"{self.split}/{name}")[:])
        except (KeyError, FileNotFoundError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"array {name} of {self.path}/{self.split} cannot be read ({type(error).__name__}: {error}); {REBUILD}") from error


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


def is_address(path: Path | str) -> bool:
    """Whether `path` is an address (http://…) and not a folder."""
    return isinstance(path, str) and "://" in path


def _open_array(path: str, name: str) -> Any:
    import zarr

    return zarr.open_group(path, mode="r", zarr_format=3)[name]


def _require_whole(attributes: dict[str, Any], group: str) -> None:
    if "tokens_sha256" not in attributes:
        raise ArtifactError(f"{group} is unfinished; run its recipe again to continue it")
    if (number := attributes.get("format", 1)) != FORMAT:
        raise ArtifactError(_other_format(group, number))


def _other_format(path: str, number: int) -> str:
    return f"{path} is a token store of format {number}, this version reads format {FORMAT}; run stage shard again"


def _open_address(cls: type[TokenStore], address: str, split: str, verify: bool | None, ledger: Path | None) -> TokenStore:
    """A store behind fsspec. Nothing is read but metadata and, where there is one, the ledger with the chunks' hashes."""
    import zarr

    try:
        group: Any = zarr.open_group(address, mode="r", zarr_format=3, path=split)
        attributes = dict(group.attrs)
        _require_whole(attributes, f"{address}/{split}")
        described = group["tokens"].metadata.to_dict()
    except ImportError as error:  # fsspec names the package that knows this kind of address
        raise ArtifactError(f"{address} cannot be opened: {error}") from error
    except (KeyError, OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{address} has no split {split!r} ({type(error).__name__}: {error}); check the address") from error
    metadata = ArrayMetadata(json.loads(json.dumps(described, default=str)), f"{address}/{split}/tokens")
    hashes = _chunk_hashes(ledger or f"{address.rpartition('/')[0]}/ledger.jsonl", split, attributes["tokens_sha256"])
    decoded = DecodedChunks(f"{address}/{split}/tokens", metadata, functools.partial(_open_array, address, f"{split}/tokens"), hashes)
    store = cls(address, split, decoded, metadata, attributes)
    if hashes is None and store.small if verify is None else verify:
        store.verify()
    return store


def _chunk_hashes(ledger: Path | str, split: str, tokens_sha256: str) -> list[bytes] | None:
    """SHA-256 of every chunk from a ledger; None where there is none that fits `tokens_sha256`."""
    import fsspec

    try:
        with fsspec.open(str(ledger), "rb") as stream:
            rows = [json.loads(line) for line in stream.read().splitlines()]  # type: ignore[attr-defined]
        hashes = [bytes.fromhex(h) for row in rows if row["split"] == split and "shard" in row for h in row["sha256"]]
    except (OSError, ValueError, KeyError):
        return None
    return hashes if hashlib.sha256(b"".join(hashes)).hexdigest() == tokens_sha256 else None
