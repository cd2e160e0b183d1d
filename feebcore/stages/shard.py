"""Stage shard: writes the documents as token shards in zarr.

Output: `tokens.zarr` (feebcore/data/store.py), its `ledger.jsonl`, and `tokens.json` with the hashes that make the
content digest: the same tokens have the same digest in any layout. After a kill it continues at the last whole shard.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Execution, StageConfig
from feebcore.errors import DataError, Interrupted
from feebcore.files import write_json

if TYPE_CHECKING:
    from pathlib import Path

    from feebcore.data.encode import Encoder
    from feebcore.data.store_writer import SplitWriter
    from feebcore.recipe import Recipe

CHUNK = 256 * 1024  # as in store_writer, which imports numpy


class ShardConfig(StageConfig):
    """Layout of the shards. The tokens themselves follow from documents and tokenizer alone."""

    shard_tokens: int = Field(0, ge=0, description=f"tokens per shard file, a multiple of {CHUNK}; 0: from the corpus, 1 to 64 Mi")
    compress: bool = Field(False, description="zstd-compressed chunks: smaller, but windows are read 100 times slower")
    workers: Execution[int] = Field(0, ge=0, description="encoding processes; 0: this process for small corpora, else one a core up to 16")

    @field_validator("shard_tokens")
    @classmethod
    def _whole_chunks(cls, value: int) -> int:
        if value % CHUNK:
            raise ValueError(f"must be a multiple of {CHUNK} (chunks are never split over shards), not {value}; try {max(1, round(value / CHUNK)) * CHUNK}")
        return value


def check(section: ShardConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: ShardConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    import polars as pl

    from feebcore.data.encode import Encoder
    from feebcore.data.store_writer import default_shard_tokens

    documents = inputs["documents"].file("documents.parquet")
    table = pl.read_parquet(documents, columns=["source", "num_bytes", "split"])
    sources = sorted(table["source"].unique())
    total_bytes = int(table["num_bytes"].sum())
    began = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    with Encoder(inputs["tokenizer"].file("tokenizer"), section.workers, total_bytes) as encoder:
        done_bytes = 0
        for split in ("train", "val"):
            part = table.filter(table["split"] == split)
            num_bytes = int(part["num_bytes"].sum())
            writer = _writer(section, out.path / "tokens.zarr", split, encoder, section.shard_tokens or default_shard_tokens(num_bytes))
            _write_split(writer, encoder, documents, table, out, done_bytes, total_bytes)
            codes = pl.Series([sources.index(s) for s in part["source"]], dtype=pl.UInt16) if len(sources) > 1 else pl.zeros(part.height, pl.UInt16, eager=True)
            rows[split] = writer.finish(part["num_bytes"].to_numpy(), codes.to_numpy(), sources)
            done_bytes += num_bytes
    if not rows["train"]["tokens"]:
        raise DataError("shard: the training split has no tokens")
    write_json(out.path / "tokens.json", {"vocab_size": encoder.vocab_size, "bos_id": encoder.bos_id, "eos_id": encoder.eos_id, "sources": sources, **rows})
    out.content("tokens.json")
    num_tokens = sum(row["tokens"] for row in rows.values())
    num_text_tokens = num_tokens - 2 * sum(row["documents"] for row in rows.values())
    return {
        "train_tokens": rows["train"]["tokens"],
        "val_tokens": rows["val"]["tokens"],
        "train_documents": rows["train"]["documents"],
        "val_documents": rows["val"]["documents"],
        "vocab_size": encoder.vocab_size,
        "bytes_per_token": total_bytes / max(1, num_text_tokens),
        "tokens_per_second": num_tokens / max(1e-9, time.monotonic() - began),
    }


def _writer(section: ShardConfig, root: Path, split: str, encoder: Encoder, shard_tokens: int) -> SplitWriter:
    from feebcore.data.store_writer import SplitWriter

    return SplitWriter(
        root,
        split,
        vocab_size=encoder.vocab_size,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        shard_tokens=shard_tokens,
        compress=section.compress,
    )


def _write_split(writer: SplitWriter, encoder: Encoder, documents: Path, table: Any, out: StageOutput, done_bytes: int, total_bytes: int) -> None:
    """Encode and append the split's documents from `writer.next_document` on."""
    from feebcore.data.documents import read_batches

    if writer.done is not None:
        return
    rows = (table["split"] == writer.split).arg_true()
    if writer.next_document >= len(rows):
        return
    first = int(rows[writer.next_document])
    before = table.head(first)
    done_bytes += int(before.filter(before["split"] == writer.split)["num_bytes"].sum())
    if writer.next_document:
        out.log(f"shard: continuing {writer.split} at document {writer.next_document} of {len(rows)}")
    batches = (frame.filter(frame["split"] == writer.split) for frame in read_batches(documents, ["text", "num_bytes", "split"], encoder.batch_bytes, first))
    for frame, encoded in encoder.encode(batches):
        writer.append(encoded)
        done_bytes += int(frame["num_bytes"].sum())
        if out.stop_requested:
            raise Interrupted(f"shard: stopped after {writer.next_document} documents of {writer.split}; run again to continue at the last whole shard")
        out.progress(done_bytes, total_bytes, "bytes", "encode", documents=writer.next_document)
