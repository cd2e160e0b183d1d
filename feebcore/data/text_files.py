"""Documents out of text, JSON, CSV and Parquet files, compressed or not; a bounded part of a file in memory at a time (a .json
array, a .zst file and a text file without separator are read whole).

The suffix says what a file holds, in upper or lower case; compression, Parquet, archives and macOS companions are known by
their first bytes, whatever the file is called.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import json
import lzma
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from feebcore.errors import DataError, did_you_mean
from feebcore.protocols import Document, Skipped

BLOCK = 1 << 20
ROWS = 4096  # Parquet rows at a time
HEAD = 512
KINDS = {".txt": "text", ".md": "text", ".rst": "text", ".py": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json"}
KINDS |= {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES_READ = f"{' '.join(KINDS)}, each also with {' '.join(COMPRESSIONS)}"
NOT_UTF8 = "not UTF-8"
UTF16 = "UTF-16; save it as UTF-8"
NO_TEXT = "row without text"
EMPTY = "empty"
COMPANION = "macOS companion file"
ARCHIVE = "archive; unpack it"


def _zstd(stream: IO[bytes]) -> IO[bytes]:
    from numcodecs import zstd

    try:
        return io.BytesIO(zstd.decompress(stream.read()))
    except RuntimeError as error:
        raise EOFError(str(error)) from None


OPENERS: tuple[tuple[bytes, Callable[[Any], Any]], ...] = (
    (rb"\x1f\x8b\x08", lambda stream: gzip.GzipFile(fileobj=stream, mode="rb")),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", bz2.BZ2File),
    (rb"\xfd7zXZ\x00", lzma.LZMAFile),
    (rb"\x28\xb5\x2f\xfd", _zstd),
)


@contextlib.contextmanager
def decompressed(path: Path) -> Iterator[io.BufferedReader]:
    """What a file holds once every compression around it is undone. A damaged file is a DataError that names it."""
    with contextlib.ExitStack() as stack:
        try:
            stream = stack.enter_context(open(path, "rb"))
            while opener := next((o for magic, o in OPENERS if re.match(magic, stream.peek(HEAD))), None):
                stream = stack.enter_context(io.BufferedReader(opener(stream)))
            yield stream
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise DataError(f"{path} is truncated or damaged ({error}); get it again") from None
        except OSError as error:  # gzip and bz2 report damage so, without a number
            if error.errno is not None:
                raise
            raise DataError(f"{path} is truncated or damaged ({error}); get it again") from None


def head_of(stream: io.BufferedReader) -> bytes:
    """The first HEAD bytes, which stay to be read (fewer at the end of the file)."""
    return stream.peek(HEAD)[:HEAD]


def kind_of(name: str) -> str:
    """The value of KINDS that the suffix says, '' for a suffix that is not known."""
    name = name.lower()
    while name.endswith(COMPRESSIONS):
        name = name.rpartition(".")[0]
    return KINDS.get(Path(name).suffix, "")


def is_archive_head(head: bytes) -> bool:
    """Whether a file that begins so is a zip or tar archive."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or head[257:262] == b"ustar"


def is_utf16(head: bytes) -> bool:
    """Whether a file that begins so is UTF-16: it says so, or every other byte is zero, as of English text."""
    return head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or (len(head) > 3 and not (any(head[::2]) and any(head[1::2])))


def is_companion(path: Path) -> bool:
    """Whether it is metadata that macOS writes next to a file: `._x` next to `x`, or anything in a folder `__MACOSX`."""
    return path.name == ".DS_Store" or "__MACOSX" in path.parts or (path.name.startswith("._") and path.with_name(path.name[2:]).exists())


def parse_json(text: str | bytes, where: str) -> Any:
    """One JSON value; numbers are floats. Raises DataError that begins with `where`."""
    try:
        return json.loads(text, parse_int=float)  # int refuses more than 4,300 digits
    except RecursionError:
        raise DataError(f"{where}: JSON nested deeper than can be read (some {sys.getrecursionlimit()} levels); remove the nested value") from None
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from None


class TextReader:
    """Turns files into documents and counts what it had to leave out, by reason and name.

    source: the documents' source. column: key of the text in rows. separator: between documents of a plain text file.
    """

    def __init__(self, source: str, column: str = "text", separator: str = "", skipped: Skipped | None = None) -> None:
        self.source, self.column, self.separator = source, column, separator
        self.skipped = Skipped() if skipped is None else skipped

    def read(self, path: Path, key: str) -> Iterator[Document]:
        """The documents of one file, keys `key` or `key:number` (numbers with leading zeros, in order)."""
        with decompressed(path) as stream:
            head = head_of(stream)
            if is_companion(path) or head.startswith(b"\x00\x05\x16"):
                self.skipped.add(COMPANION, key)
                return
            if is_archive_head(head):
                self.skipped.add(ARCHIVE, key)
                return
            if is_utf16(head):
                self.skipped.add(UTF16, key)
                return
            kind = "parquet" if head.startswith(b"PAR1") else kind_of(path.name) or _sniffed(stream)
            if not head and kind != "parquet":
                self.skipped.add(EMPTY, key)
                return
            if kind == "text" and not self.separator:
                text = self._decoded(stream.read(), key)
                if text is not None:
                    yield Document(text, self.source, key)
                return
            rows = {"parquet": self._parquet, "jsonl": self._json, "json": self._json, "csv": self._csv, "text": self._separated}[kind]
            for number, text in enumerate(rows(stream, path, key)):
                if text is not None:
                    yield Document(text, self.source, f"{key}:{number:09}")

    def _parquet(self, stream: IO[bytes], path: Path, key: str) -> Iterator[str | None]:
        import polars as pl

        with contextlib.ExitStack() as stack:
            readable = path
            with open(path, "rb") as raw:
                packed = raw.read(4) != b"PAR1"
            if packed:  # Parquet is read from its end
                unpacked = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".parquet"))
                shutil.copyfileobj(stream, unpacked)
                unpacked.flush()
                readable = Path(unpacked.name)
            try:
                frame = pl.scan_parquet(readable, glob=False, hive_partitioning=False)
                schema = frame.collect_schema()
                if self.column not in schema:
                    raise DataError(f"{path} has no column {self.column!r} (text_column); {did_you_mean(self.column, schema.names())}")
                if schema[self.column] != pl.String:
                    raise DataError(f"{path}: column {self.column!r} holds {schema[self.column]}, not text; set text_column to another")
                start = 0
                while values := frame.select(self.column).slice(start, ROWS).collect()[self.column].to_list():
                    for number, value in enumerate(values, start):
                        if value is None:
                            self.skipped.add(NO_TEXT, f"{key}:{number}")
                        yield value
                    start += len(values)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise DataError(f"{path} is not a Parquet file ({error})") from error

    def _json(self, stream: io.BufferedReader, path: Path, key: str) -> Iterator[str | None]:
        """Objects line by line; else, in a file that begins with an array or (.json) a value of several lines, the value whole."""
        first = stream.readline()
        number = 1
        while first and not first.removeprefix(codecs.BOM_UTF8).strip():
            first, number = stream.readline(), number + 1
        whole = first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
        if kind_of(path.name) == "json" and not whole:
            try:
                parse_json(first, "")
            except (DataError, UnicodeDecodeError):
                whole = True
        if whole:
            text = self._decoded(first + stream.read(), key)
            value = parse_json(text, str(path)) if text is not None else []
            for i, row in enumerate(value if isinstance(value, list) else [value]):
                yield self._text_of(row, f"{path}: row {i}", f"{key}:{i}")
            return
        line = first
        while line:
            if line.strip():
                text = self._decoded(line, f"{key}:{number}")
                yield None if text is None else self._text_of(parse_json(text, f"{path}:{number}"), f"{path}:{number}", f"{key}:{number}")
            line, number = stream.readline(), number + 1

    def _text_of(self, row: Any, where: str, name: str) -> str | None:
        if not isinstance(row, dict):
            raise DataError(f"{where}: a row is an object, as {{'{self.column}': …}}")
        if self.column not in row:
            raise DataError(f"{where}: no key {self.column!r} (text_column); {did_you_mean(self.column, row)}")
        if isinstance(value := row[self.column], str):
            return value
        self.skipped.add(NO_TEXT, name)
        return None

    def _csv(self, stream: io.BufferedReader, path: Path, key: str) -> Iterator[str | None]:
        csv.field_size_limit(sys.maxsize)
        line = head_of(stream).removeprefix(codecs.BOM_UTF8).splitlines()[:1]
        first = line[0].decode(errors="replace") if line else ""
        delimiter = next((d for d in ",;\t|" if self.column in next(csv.reader([first], delimiter=d), [])), "\t" if ".tsv" in path.name.lower() else ",")
        rows = csv.reader(io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=""), delimiter=delimiter, strict=True)
        try:
            names = next(rows, None)
            if names is None:
                return
            if self.column not in names:
                raise DataError(f"{path}: its first line has no column {self.column!r} (text_column); {did_you_mean(self.column, names)}")
            if names.count(self.column) > 1:
                raise DataError(f"{path}: its first line has {names.count(self.column)} columns {self.column!r} (text_column); rename all but one")
            place = names.index(self.column)
            for row in rows:
                where = f"{key}:{rows.line_num}"
                if len(row) > len(names):
                    raise DataError(f"{path}:{rows.line_num}: {len(row)} fields under {len(names)} columns; put fields that hold {delimiter!r} in quotes")
                if len(row) <= place:
                    if row:
                        self.skipped.add(NO_TEXT, where)
                        yield None
                    continue
                yield self._decoded(row[place].encode(errors="surrogateescape"), where)
        except csv.Error as error:
            raise DataError(f"{path}:{rows.line_num}: not CSV ({error})") from None

    def _separated(self, stream: IO[bytes], path: Path, key: str) -> Iterator[str | None]:
        separator = self.separator.encode()
        rest, number = b"", 0
        while block := stream.read(BLOCK):
            *whole, rest = (rest + block).split(separator)
            for part in whole:
                yield self._decoded(part, f"{key}:{number}")
                number += 1
        if rest.strip():
            yield self._decoded(rest, f"{key}:{number}")

    def _decoded(self, data: bytes, name: str) -> str | None:
        try:
            return data.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError:
            self.skipped.add(NOT_UTF8, name)
            return None


def _sniffed(stream: io.BufferedReader) -> str:
    """'jsonl' where the first line is a JSON object, else 'text': for names whose suffix says nothing, as of many addresses."""
    if not head_of(stream).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        return "text"
    line, ended, _ = stream.peek(BLOCK).lstrip().partition(b"\n")
    with contextlib.suppress(DataError, UnicodeDecodeError):
        if isinstance(parse_json(line, ""), dict):
            return "jsonl"
    return "text" if ended else "jsonl"  # a first line longer than the buffer: rows, or an error that says where
