"""Documents out of text, JSONL and Parquet files, a bounded part of a file in memory at a time."""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from feebcore.errors import DataError, did_you_mean
from feebcore.protocols import Document

BLOCK = 1 << 20
ROWS = 4096  # Parquet rows at a time
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
NOT_UTF8 = "not UTF-8"


class TextReader:
    """Turns files into documents and counts what it had to leave out, by reason.

    source: the documents' source. column: key of the text in rows. separator: between documents of a plain text file.
    """

    def __init__(self, source: str, column: str = "text", separator: str = "", skipped: Counter[str] | None = None) -> None:
        self.source, self.column, self.separator = source, column, separator
        self.skipped: Counter[str] = Counter() if skipped is None else skipped

    def read(self, path: Path, key: str) -> Iterator[Document]:
        """The documents of one file, keys `key` or `key:number` (numbers with leading zeros, in order)."""
        if path.name.endswith(".parquet"):
            rows = self._parquet(path)
        elif path.name.endswith(".jsonl"):
            rows = self._jsonl(path)
        elif self.separator:
            rows = self._separated(path)
        else:
            text = self._decoded(path.read_bytes())
            if text is not None:
                yield Document(text, self.source, key)
            return
        for number, text in enumerate(rows):
            if text is not None:
                yield Document(text, self.source, f"{key}:{number:09}")

    def _parquet(self, path: Path) -> Iterator[str | None]:
        import polars as pl

        try:
            frame = pl.scan_parquet(path)
            schema = frame.collect_schema()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is not a Parquet file ({error})") from error
        if self.column not in schema:
            raise DataError(f"{path} has no column {self.column!r} (text_column); {did_you_mean(self.column, schema.names())}")
        if schema[self.column] != pl.String:
            raise DataError(f"{path}: column {self.column!r} holds {schema[self.column]}, not text; set text_column to another")
        start = 0
        while True:
            values = frame.select(self.column).slice(start, ROWS).collect()[self.column].to_list()
            if not values:
                return
            for value in values:
                if value is None:
                    self.skipped["row without text"] += 1
                yield value
            start += len(values)

    def _jsonl(self, path: Path) -> Iterator[str | None]:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                text = self._decoded(line)
                if text is None:
                    yield None
                    continue
                try:
                    row = json.loads(text)
                except ValueError as error:
                    raise DataError(f"{path}:{number}: not JSON ({error})") from None
                if not isinstance(row, dict):
                    raise DataError(f"{path}:{number}: a row is an object, as {{'{self.column}': …}}")
                if self.column not in row:
                    raise DataError(f"{path}:{number}: no key {self.column!r} (text_column); {did_you_mean(self.column, row)}")
                value = row[self.column]
                if not isinstance(value, str):
                    self.skipped["row without text"] += 1
                yield value if isinstance(value, str) else None

    def _separated(self, path: Path) -> Iterator[str | None]:
        separator = self.separator.encode()
        rest = b""
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK):
                *whole, rest = (rest + block).split(separator)
                for part in whole:
                    yield self._decoded(part)
        if rest.strip():
            yield self._decoded(rest)

    def _decoded(self, data: bytes) -> str | None:
        try:
            return data.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError:
            self.skipped[NOT_UTF8] += 1
            return None
