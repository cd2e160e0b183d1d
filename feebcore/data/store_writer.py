"""Writes one split of a token store shard by shard, with a ledger, so that a kill loses at most one shard.

The ledger is `ledger.jsonl` next to the store: one row per finished shard (its chunk hashes and where in the documents
it ends) and one row per finished split. A row is written after its shard is on disk; lengths of finished documents lie
in `<split>-lengths.bin` until the split is done. Shards end at fixed token counts, wherever documents end, and encoding
is per document: continuing from any row gives the same files as never having stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.data.shard_index import read_shard_index
from feebcore.data.store import FORMAT, block_hash
from feebcore.errors import ArtifactError, DataError
from feebcore.files import read_jsonl, sync_folder

CHUNK_TOKENS = 256 * 1024
MIN_SHARD, MAX_SHARD = 2**20, 2**26
TARGET_SHARDS = 8


def default_shard_tokens(num_bytes: int) -> int:
    """Tokens per shard for a corpus of `num_bytes` of text: a power of two from 1 to 64 Mi, about eight shards."""
    tokens = max(1, num_bytes // (3 * TARGET_SHARDS))
    return min(MAX_SHARD, max(MIN_SHARD, 1 << (tokens - 1).bit_length()))


def token_dtype(vocab_size: int) -> np.dtype:
    """uint16 when every id fits and one value is left to fill with, else uint32."""
    return np.dtype("<u2" if vocab_size < 2**16 else "<u4")


def stored_ids(ids: np.ndarray, vocab_size: int, dtype: np.dtype) -> np.ndarray:
    """`ids` in the stored type. Raises DataError for one outside the vocabulary."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise DataError(f"the tokenizer gave id {int(ids.max())}, outside its vocabulary of {vocab_size}; it needs `bos_id`, `eos_id` < vocab_size")
    return ids.astype(dtype, copy=False)


class SplitWriter:
    """Appends documents to the split and continues where its ledger ends.

    next_document: the first document that `append` expects; earlier ones are on disk. shard_tokens must be a multiple
    of chunk_tokens. Errors of the disk come out as OSError.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        *,
        vocab_size: int,
        bos_id: int,
        eos_id: int,
        shard_tokens: int,
        compress: bool = False,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> None:
        if shard_tokens < chunk_tokens or shard_tokens % chunk_tokens:
            raise ValueError(f"shard_tokens must be a multiple of {chunk_tokens}, not {shard_tokens}")
        self.root, self.split = Path(root), split
        self.vocab_size, self.bos_id, self.eos_id = vocab_size, bos_id, eos_id
        self.shard_tokens, self.chunk_tokens, self.compress = shard_tokens, chunk_tokens, compress
        self.dtype = token_dtype(vocab_size)
        self.ledger = self.root.parent / "ledger.jsonl"
        self._lengths_path = self.root.parent / f"{split}-lengths.bin"
        self._shard = np.empty(shard_tokens, self.dtype)  # the next shard; memory is used as it fills
        self._num_pending = 0
        self.done: dict[str, Any] | None = None  # the split's row of the ledger, once it is finished
        self.next_document = 0
        self._skip = 0  # tokens of next_document that are on disk already
        self._num_shards = self._num_written = 0
        self._hashes: list[bytes] = []
        self._lengths = array("q")  # eight bytes a document, whatever the corpus
        self._end = 0  # tokens of all documents so far
        self._load()

    def append(self, documents: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Write whole documents (BOS + ids + EOS each), in order, from `next_document` on."""
        for document in documents:
            ids = np.asarray(document)
            self.append_ids(ids, np.array([len(ids)], dtype=np.int64))

    def append_ids(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """The same for documents that lie one after another in `ids`, `lengths` tokens each."""
        stored = stored_ids(ids, self.vocab_size, self.dtype)
        first, base = self.next_document, self._end
        ends = base + np.cumsum(lengths)
        position, self._skip = self._skip, 0
        self._lengths.frombytes(lengths.astype(np.int64).tobytes())
        self._end, self.next_document = base + len(stored), first + len(lengths)
        while position < len(stored):
            count = min(len(stored) - position, self.shard_tokens - self._num_pending)
            self._shard[self._num_pending : self._num_pending + count] = stored[position : position + count]
            self._num_pending += count
            position += count
            if self._num_pending == self.shard_tokens:
                cut = int(np.searchsorted(ends, base + position))  # the document in which the shard ends, or that ends with it
                whole = int(ends[cut]) == base + position
                begin = int(ends[cut] - lengths[cut])
                self._flush(first + cut + whole, 0 if whole else base + position - begin)

    def finish(self, doc_bytes: np.ndarray, doc_source: np.ndarray, sources: Sequence[str]) -> dict[str, Any]:
        """Write the last shard and the document arrays; the split's row of the ledger, with its hashes and counts."""
        if self.done is not None:
            return self.done
        if len(doc_bytes) != self.next_document:
            raise ValueError(f"{self.next_document} documents were appended, doc_bytes has {len(doc_bytes)}")
        if self._num_pending:
            self._flush(self.next_document, 0)
        offsets = np.concatenate([[0], np.cumsum(np.frombuffer(self._lengths, dtype=np.int64))]).astype(np.int64)
        arrays: dict[str, np.ndarray] = {"doc_offsets": offsets, "doc_bytes": doc_bytes.astype(np.int64), "doc_source": doc_source.astype(np.uint16)}
        digest = hashlib.sha256(b"".join(self._hashes)).hexdigest()
        group = self._group()
        for name, values in arrays.items():
            group.create_array(name, data=values, chunks=(max(1, min(len(values), 2**20)),), overwrite=True)
        group.attrs.update(
            {
                "format": FORMAT,
                "vocab_size": self.vocab_size,
                "bos_id": self.bos_id,
                "eos_id": self.eos_id,
                "sources": list(sources),
                "tokens_sha256": digest,
            }
        )
        done = {
            "split": self.split,
            "tokens": self._num_written,
            "documents": self.next_document,
            "tokens_sha256": digest,
            "arrays_sha256": {name: hashlib.sha256(values.tobytes()).hexdigest() for name, values in arrays.items()},
        }
        _sync_tree(self.root / self.split)
        self._append_row(done)
        self._lengths_path.unlink(missing_ok=True)
        self.done = done
        return done

    def _load(self) -> None:
        """Take up the ledger's rows of this split, as far as their shards are whole."""
        for leftover in self.root.rglob("*.partial"):  # a write that a kill or a full disk cut short
            leftover.unlink()
        rows = [r for r in read_jsonl(self.ledger) if r["split"] == self.split]
        self.done = next((r for r in rows if "documents" in r), None)
        shards: list[dict[str, Any]] = [r for r in rows if "shard" in r] if self.done is None else []
        if shards and shards[0]["layout"] != self._layout():
            raise ArtifactError(f"{self.root} was begun with another layout ({shards[0]['layout']}); remove {self.root.parent} and run again")
        per_shard = self.shard_tokens // self.chunk_tokens
        for row in shards:
            read_shard_index(self.root / self.split / "tokens" / "c" / str(row["shard"]), per_shard)
        self._num_shards = len(shards)
        self._num_written = sum(r["tokens"] for r in shards)
        self._hashes = [bytes.fromhex(h) for r in shards for h in r["sha256"]]
        self.next_document = shards[-1]["document"] if shards else 0
        self._skip = shards[-1]["skip"] if shards else 0
        if shards:
            known = np.fromfile(self._lengths_path, dtype="<i8", count=self.next_document) if self.next_document else np.empty(0, np.int64)
            if len(known) < self.next_document:
                raise ArtifactError(f"{self._lengths_path} is damaged; remove {self.root.parent} and run again")
            self._lengths.frombytes(known.astype(np.int64).tobytes())
            self._end = int(known.sum())

    def _flush(self, complete: int, skip: int) -> None:
        """Write the pending tokens as the next shard, and its row. complete: documents that end up to there; skip: tokens of
        the next one that lie in this shard or before."""
        count, shard = self._num_pending, self._shard[: self._num_pending]
        tokens = self._group()["tokens"]
        begin = self._num_shards * self.shard_tokens
        tokens.resize((begin + count,))
        tokens[begin : begin + count] = shard
        path = self.root / self.split / "tokens" / "c" / str(self._num_shards)
        _sync_file(path)
        sync_folder(path.parent)
        self._save_lengths(complete)
        hashes = [block_hash(shard[i : i + self.chunk_tokens]) for i in range(0, count, self.chunk_tokens)]
        row = {"split": self.split, "shard": self._num_shards, "tokens": count, "document": complete, "skip": skip}
        self._append_row(row | {"layout": self._layout(), "sha256": [h.hex() for h in hashes]})
        self._hashes += hashes
        self._num_shards += 1
        self._num_written += count
        self._num_pending = 0

    def _layout(self) -> list[Any]:
        return [self.dtype.str, self.shard_tokens, self.chunk_tokens, self.compress]

    def _group(self) -> Any:
        import zarr
        from zarr.codecs import ZstdCodec

        root = zarr.open_group(str(self.root), mode="a")
        if (self.root / self.split / "tokens" / "zarr.json").exists():
            return root[self.split]
        group = root.require_group(self.split)
        group.create_array(
            "tokens",
            shape=(0,),
            dtype=self.dtype,
            chunks=(self.chunk_tokens,),
            shards=(self.shard_tokens,),
            compressors=ZstdCodec(level=3) if self.compress else None,
            filters=None,
            fill_value=int(np.iinfo(self.dtype).max),  # no id: zarr leaves chunks out that hold nothing else
            overwrite=True,
        )
        return group

    def _save_lengths(self, complete: int) -> None:
        """Append those of the first `complete` documents that the file does not have yet."""
        known = self._lengths_path.stat().st_size // 8 if self._lengths_path.exists() else 0
        known = min(known, complete)
        with open(self._lengths_path, "r+b" if self._lengths_path.exists() else "wb") as stream:
            stream.seek(8 * known)
            stream.write(np.frombuffer(self._lengths, dtype=np.int64)[known:complete].astype("<i8").tobytes())
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())

    def _append_row(self, row: dict[str, Any]) -> None:
        """Add a whole line; a line that was cut short before is dropped first."""
        text = self.ledger.read_bytes() if self.ledger.exists() else b""
        whole = text.rfind(b"\n") + 1
        with open(self.ledger, "r+b" if self.ledger.exists() else "wb") as stream:
            stream.truncate(whole)
            stream.seek(whole)
            stream.write((json.dumps(row) + "\n").encode())
            stream.flush()
            os.fsync(stream.fileno())


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        sync_folder(path) if path.is_dir() else _sync_file(path)
