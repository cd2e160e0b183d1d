"""The document table: `documents.parquet` with columns text, source, key, sha256, num_bytes, split.

Rows are sorted by (source, key). sha256 is of the UTF-8 text, num_bytes its length, split 'validation' where the hash is 0
modulo the section's split_modulus (or in the last part of its source, where the section splits so) or all of the source is validation text, else 'train'. Nothing here holds more than a batch of
text in memory, except a sort of documents that did not come in order.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import polars as pl

from feebcore.data.text_files import EMPTY
from feebcore.errors import DataError
from feebcore.files import explain, sync_folder
from feebcore.protocols import Document

BATCH_BYTES = 32 << 20
GROUP_BYTES = 16 << 20
MAX_PARTS = 128  # of a sort
SURROGATES = "lone surrogates, which UTF-8 does not have"
RAW = {"text": pl.String, "source": pl.String, "key": pl.String, "num_bytes": pl.Int64}
COLUMNS = ("text", "source", "key", "sha256", "num_bytes", "split")


class DocumentSpool:
    """Collects documents into numbered Parquet files of about BATCH_BYTES of text each."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self.folder, self.prefix = folder, prefix
        self.num_documents = self.num_bytes = 0
        self._rows: list[tuple[str, str, str, int]] = []
        self._pending = 0
        self._files = 0

    def add(self, document: Document) -> str:
        """Keep one document and return ''; or return why it cannot be kept."""
        try:
            size = len(document.text.encode())
        except UnicodeEncodeError:
            return SURROGATES
        if size == 0:
            return EMPTY
        self._rows.append((document.text, document.source, document.key, size))
        self.num_documents += 1
        self.num_bytes += size
        self._pending += size
        if self._pending >= BATCH_BYTES:
            self.flush()
        return ""

    def flush(self) -> None:
        if self._rows:
            frame = pl.DataFrame(self._rows, schema=RAW, orient="row")
            write_parquet(frame.lazy(), self.folder / f"{self.prefix}-{self._files:06}.parquet")
            self._files += 1
            self._rows, self._pending = [], 0

    def scan(self) -> pl.LazyFrame:
        self.flush()
        return scan_parquet(sorted(self.folder.glob(f"{self.prefix}-*.parquet")), RAW)


def scan_parquet(paths: Path | Sequence[Path], schema: Mapping[str, Any] | None = None) -> pl.LazyFrame:
    """Lazy rows of these files; `[`, `*` and `?` in a path are characters, not patterns."""
    return pl.scan_parquet(paths, glob=False, hive_partitioning=False, schema=schema)  # type: ignore[arg-type]


def write_parquet(frame: pl.LazyFrame, path: Path, compression: Literal["lz4", "zstd"] = "lz4", row_group_size: int | None = None) -> None:
    """Stream `frame` into a file, rows in order. A full or read-only disk is an ArtifactError that says what to do."""
    try:
        frame.sink_parquet(path, compression=compression, row_group_size=row_group_size, maintain_order=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        for code in (errno.ENOSPC, errno.EROFS):  # polars reports them as text only
            if os.strerror(code) in str(error):
                raise explain(OSError(code, os.strerror(code)), path) from error
        raise


def read_batches(path: Path, columns: Sequence[str], batch_bytes: int = BATCH_BYTES, first_row: int = 0) -> Iterator[pl.DataFrame]:
    """Rows from `first_row` on in frames of about `batch_bytes` of text (at least one row)."""
    sizes = scan_parquet(path).select("num_bytes").collect()["num_bytes"].to_numpy()
    frame = scan_parquet(path).select(columns)
    start = first_row
    while start < len(sizes):
        stop, total = start, 0
        while stop < len(sizes) and (stop == start or total + sizes[stop] <= batch_bytes):
            total += int(sizes[stop])
            stop += 1
        yield frame.slice(start, stop - start).collect()
        start = stop


def read_texts(path: Path, split: str | None = None, max_bytes: int | None = None) -> Iterator[str]:
    """Texts of one split (None: all), in order; at most about `max_bytes` of them."""
    seen = 0
    for frame in read_batches(path, ["text", "num_bytes", "split"], min(BATCH_BYTES, max_bytes or BATCH_BYTES)):
        chosen = frame if split is None else frame.filter(pl.col("split") == split)
        for text, size in chosen.select("text", "num_bytes").iter_rows():
            if max_bytes is not None and seen >= max_bytes:
                return
            seen += size
            yield text


def write_documents(
    filtered: Path,
    target: Path,
    work: Path,
    split_modulus: int,
    tick: Callable[[float], None],
    validation_sources: Set[str] = frozenset(),
    tail_fraction: float = 0.0,
) -> tuple[pl.DataFrame, str]:
    """Hash, split and sort the rows of `filtered` (columns of RAW) into `target`, which appears whole or not at all.

    tick: called with the share of rows done. validation_sources: sources whose documents all go to the validation split. tail_fraction: share of
    each source's text, at its end, that goes there instead of documents chosen by hash; a document across the border is cut at the end of a line, its
    rest has the key `KEY (tail)`. Returns the table without its texts, and a digest of it: the same documents give the same digest whatever wrote the file.
    """
    names = scan_parquet(filtered).select("source", "key", "num_bytes").collect()
    if names.is_empty():
        raise DataError("no document is left")
    in_order = _in_order(names)
    batches = read_batches(filtered, ["text", "source", "key"]) if in_order else _sorted_batches(filtered, names, work)
    in_tail, cuts = _tails(names if in_order else names.sort("source", "key", maintain_order=True), tail_fraction)
    digest, done = hashlib.sha256(), 0
    without_text: list[pl.DataFrame] = []
    files: list[Path] = []
    for batch in batches:
        start, done = done, done + batch.height
        marks = in_tail[start:done]
        for row in sorted((row for row in cuts if start <= row < done), reverse=True):
            batch, marks = _cut(batch, marks, row - start, cuts[row])
        encoded = [text.encode() for text in batch["text"]]
        hashes = [hashlib.sha256(text).hexdigest() for text in encoded]
        splits = [
            "validation" if source in validation_sources or late else "train" if tail_fraction else split_of(sha256, split_modulus)
            for sha256, source, late in zip(hashes, batch["source"], marks, strict=True)
        ]
        frame = batch.with_columns(
            sha256=pl.Series(hashes, dtype=pl.String),
            num_bytes=pl.Series([len(text) for text in encoded], dtype=pl.Int64),
            split=pl.Series(splits, dtype=pl.String),
        ).select(COLUMNS)
        without_text.append(frame.drop("text"))
        digest.update("".join(f"{row}\n" for row in without_text[-1].iter_rows()).encode())
        files.append(work / f"final-{len(files):06}.parquet")
        write_parquet(frame.lazy(), files[-1])
        tick(done / names.height)
    table = pl.concat(without_text)
    rows = rows_per_group(table.height, int(table["num_bytes"].sum()))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    write_parquet(scan_parquet(files), temporary, compression="zstd", row_group_size=rows)
    handle = os.open(temporary, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    os.replace(temporary, target)
    sync_folder(target.parent)
    return table, digest.hexdigest()


def _tails(names: pl.DataFrame, fraction: float) -> tuple[list[bool], dict[int, int]]:
    """Which of the rows, in order of source, lie in the last `fraction` of their source's bytes; and of those that the border goes through, by row,
    after how many bytes. names: columns source, num_bytes."""
    if not fraction:
        return [False] * names.height, {}
    end = pl.col("num_bytes").cum_sum().over("source")
    border = (pl.col("num_bytes").sum().over("source") * (1 - fraction)).cast(pl.Int64).clip(1)
    placed = names.select(
        late=end - pl.col("num_bytes") >= border, cut=border - (end - pl.col("num_bytes")), across=(end - pl.col("num_bytes") < border) & (end > border)
    )
    across = placed.with_row_index("row").filter("across")
    return placed["late"].to_list(), dict(zip(across["row"].to_list(), across["cut"].to_list(), strict=True))


def _cut(batch: pl.DataFrame, marks: list[bool], row: int, at: int) -> tuple[pl.DataFrame, list[bool]]:
    """The batch with one row as two, the second in the tail: cut at the end of the line at byte `at`, or there where no line ends nearby."""
    text, source, key = batch.row(row)
    data = text.encode()
    ends = [place for place in (data.find(b"\n", at - 1) + 1, data.rfind(b"\n", 0, at) + 1) if abs(place - at) <= min(at, len(data) - at) // 2]
    place = ends[0] if ends else at
    while place < len(data) and data[place] & 0xC0 == 0x80:  # inside a character
        place += 1
    if not 0 < place < len(data):
        return batch, marks
    two = pl.DataFrame([(data[:place].decode(), source, key), (data[place:].decode(), source, f"{key} (tail)")], schema=batch.schema, orient="row")
    return pl.concat([batch[:row], two, batch[row + 1 :]]), [*marks[: row + 1], True, *marks[row + 1 :]]


def rows_per_group(num_rows: int, num_bytes: int) -> int:
    """Rows of a Parquet row group of about GROUP_BYTES of text: a writer holds whole groups in memory."""
    return max(16, min(100_000, GROUP_BYTES * max(1, num_rows) // max(1, num_bytes)))


def _in_order(names: pl.DataFrame) -> bool:
    before, after = names.head(-1), names.tail(-1)
    same = before["source"] == after["source"]
    return bool(((before["source"] < after["source"]) | (same & (before["key"] <= after["key"]))).all())


def _sorted_batches(filtered: Path, names: pl.DataFrame, work: Path) -> Iterator[pl.DataFrame]:
    """The rows of `filtered` by source and key. They are dealt out to files by the part of the result they belong to, then
    each part is sorted: no more than two parts of text are in memory. names: columns source, key, num_bytes of all rows."""
    order = names.with_row_index("row").sort("source", "key", maintain_order=True)
    part_bytes = max(BATCH_BYTES, int(names["num_bytes"].sum()) // MAX_PARTS)
    placed = order.select("row", place=pl.int_range(pl.len()), part=pl.col("num_bytes").cum_sum() // part_bytes).sort("row")
    start = turn = 0
    for frame in read_batches(filtered, ["text", "source", "key"]):
        dealt = pl.concat([frame, placed.slice(start, frame.height).drop("row")], how="horizontal")
        for (part,), rows in dealt.partition_by("part", as_dict=True).items():
            write_parquet(rows.lazy(), work / f"sort-{part:06}-{turn:06}.parquet")
        start, turn = start + frame.height, turn + 1
    for part in placed["part"].unique().sort():
        files = sorted(work.glob(f"sort-{part:06}-*.parquet"))
        rows = scan_parquet(files).collect().sort("place")
        for path in files:
            path.unlink()
        yield rows.drop("place", "part")


def split_of(sha256: str, modulus: int) -> str:
    """'validation' where the document's hash is 0 modulo `modulus`, else 'train'."""
    return "validation" if int(sha256, 16) % modulus == 0 else "train"
