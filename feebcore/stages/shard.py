"""Stage shard: writes the documents as token shards in zarr.

Output: `tokens.zarr` (feebcore/data/store.py), its `ledger.jsonl`, and `tokens.json` with the hashes that make the
content digest: the same tokens have the same digest in any layout. After a kill it continues at the last whole shard.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, field_validator

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Execution, StageConfig
from feebcore.errors import DataError, Interrupted, plural
from feebcore.files import write_json
from feebcore.specs import Need, StageSpec

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import polars as pl

    from feebcore.data.encode import Encoder
    from feebcore.data.store_writer import SplitWriter

CHUNK = 256 * 1024  # as in store_writer, which imports numpy

T = TypeVar("T")


class ShardConfig(StageConfig):
    """Layout of the shards. The tokens themselves follow from documents and tokenizer alone."""

    shard_tokens: int = Field(0, ge=0, description=f"tokens per shard file, a multiple of {CHUNK}; 0: from the corpus, 1 to 64 Mi")
    compress: bool = Field(False, description="zstd-compressed chunks: smaller, but sequences are read 100 times slower")
    workers: Execution[int] = Field(
        0, ge=0, description="encoding processes; 0: threads if the tokenizer has its own, else one per core, up to 16, for a large corpus"
    )
    fan_out: Execution[Literal["none", "threads", "dask", "ray"]] = Field(
        "none", description="encode on workers of a Prefect task runner; dask and ray are extras, e.g. feeb[dask]"
    )
    fan_out_address: Execution[str] = Field("", description="running Dask scheduler or Ray cluster that sees the workspace; empty: workers on this machine")

    @field_validator("shard_tokens")
    @classmethod
    def _whole_chunks(cls, value: int) -> int:
        if value % CHUNK:
            raise ValueError(f"must be a multiple of {CHUNK} (chunks are never split over shards), not {value}; try {max(1, round(value / CHUNK)) * CHUNK}")
        return value


PART = StageSpec(
    "shard",
    ShardConfig,
    build=f"{__name__}:run",
    needs=(Need("documents"), Need("tokenizer")),
    makes=("tokens",),
    process="inline",
    revision=2,
    summary="Writes the documents as token shards in zarr.",
)


def run(section: ShardConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    from feebcore.data.encode import Encoder
    from feebcore.data.store_writer import default_shard_tokens

    documents = inputs["documents"].file("documents.parquet")
    table, sources = _describe(documents)
    num_bytes, validation, codes = (table[name].to_numpy() for name in ("num_bytes", "validation", "source"))
    total_bytes = int(num_bytes.sum())
    began = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    clock = _Clock()
    with Encoder(inputs["tokenizer"].file("tokenizer"), section.workers, total_bytes, section.fan_out, section.fan_out_address) as encoder:
        done_bytes = 0
        for split in ("train", "validation"):
            chosen = validation if split == "validation" else ~validation
            part_bytes = int(num_bytes[chosen].sum())
            writer = _writer(section, out.path / "tokens.zarr", split, encoder, section.shard_tokens or default_shard_tokens(part_bytes))
            _write_split(writer, encoder, documents, num_bytes, chosen, out, done_bytes, clock)
            rows[split] = writer.finish(num_bytes[chosen], codes[chosen], sources)
            done_bytes += part_bytes
    if not rows["train"]["tokens"]:
        raise DataError("shard: the training split has no tokens")
    write_json(out.path / "tokens.json", {"vocab_size": encoder.vocab_size, "bos_id": encoder.bos_id, "eos_id": encoder.eos_id, "sources": sources, **rows})
    out.content("tokens.json")
    num_tokens = sum(row["tokens"] for row in rows.values())
    num_text_tokens = num_tokens - 2 * sum(row["documents"] for row in rows.values())
    seconds = max(1e-9, time.monotonic() - began)
    return {
        "train_tokens": rows["train"]["tokens"],
        "val_tokens": rows["validation"]["tokens"],
        "train_documents": rows["train"]["documents"],
        "val_documents": rows["validation"]["documents"],
        "vocab_size": encoder.vocab_size,
        "bytes_per_token": total_bytes / max(1, num_text_tokens),
        "tokens_per_second": num_tokens / seconds,
        "waiting_for_tokens_share": clock.waited / seconds,
    }


class _Clock:
    """waited: seconds in which the writer had nothing to write because encoding was not ready."""

    waited = 0.0

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.waited += time.monotonic() - began
            if item is None:
                return
            yield item


def _describe(documents: Path) -> tuple[pl.DataFrame, list[str]]:
    """One row a document: num_bytes int64, validation bool, source uint16 (a number into the sorted names, returned too)."""
    import polars as pl

    from feebcore.data.documents import scan_parquet

    scan = scan_parquet(documents)
    sources = scan.select(pl.col("source").unique()).collect(engine="streaming")["source"].sort().to_list()
    code = pl.col("source").replace_strict(sources, range(len(sources)), return_dtype=pl.UInt16)
    return scan.select("num_bytes", (pl.col("split") == "validation").alias("validation"), code).collect(engine="streaming"), sources


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


def _write_split(
    writer: SplitWriter, encoder: Encoder, documents: Path, num_bytes: np.ndarray, chosen: np.ndarray, out: StageOutput, done_bytes: int, clock: _Clock
) -> None:
    """Encode and append the split's documents from `writer.next_document` on. num_bytes, chosen (is it of this split): a row
    a document of the corpus."""
    import numpy as np

    from feebcore.data.encode import row_ranges

    if writer.done is not None:
        return
    rows = np.flatnonzero(chosen)
    if writer.next_document >= len(rows):
        return
    first = int(rows[writer.next_document])
    total_bytes = int(num_bytes.sum())
    done_bytes += int(num_bytes[:first][chosen[:first]].sum())
    if writer.next_document:
        out.log(f"shard: continuing {writer.split} at document {writer.next_document} of {len(rows)}")
    ranges = row_ranges(num_bytes, chosen, encoder.batch_bytes, first)
    for encoded in clock.timed(encoder.encode(documents, writer.split, ranges)):
        writer.append_ids(encoded.ids, encoded.lengths)
        done_bytes += encoded.num_bytes
        if out.stop_requested:
            raise Interrupted(
                f"shard: stopped after {plural(writer.next_document, 'document')} of {writer.split}; run again to continue at the last whole shard"
            )
        out.progress(done_bytes, total_bytes, "bytes", "encode", documents=writer.next_document)
