"""Documents to token ids: in this process, in several, or on a task runner's workers; always in order.

The unit of work is a run of rows of `documents.parquet`, which whoever does it reads for itself: no text passes between
processes, ids come back in the type they are stored in. A few units are in flight at a time, so reading, encoding and
writing overlap while memory stays bounded.

Worker processes are spawned, never forked (the tokenizers library and zarr do not survive a fork once used), load the
tokenizer from its folder, and end by themselves when their parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feebcore.data.store_writer import stored_ids, token_dtype
from feebcore.data.task_runner import Pending, open_runner
from feebcore.data.tokenizers import load_tokenizer
from feebcore.errors import DataError
from feebcore.hardware import available_cpus
from feebcore.protocols import Tokenizer

SMALL_CORPUS = 256 << 20  # bytes; below it, starting processes costs more than it gains
MAX_WORKERS = 16
BATCH_BYTES = 4 << 20  # of text, a unit of work
TASK_BYTES = 32 << 20  # the same on a task runner, where a unit costs some hundredths of a second
SKIPPED_WEIGHT = 8  # text that is read but belongs to the other split counts one eighth


class _Loaded(threading.local):
    """The tokenizer that a thread uses, by its folder: not every part can be shared between threads."""

    def __init__(self) -> None:
        self.tokenizers: dict[str, Tokenizer] = {}


_loaded = _Loaded()


@dataclass(frozen=True)
class EncodedRows:
    """ids: of the split's documents among `count` rows from `first` on, BOS + ids + EOS each, one after another, in the
    stored type. lengths int64 [documents]. num_bytes: of their text."""

    first: int
    count: int
    ids: np.ndarray
    lengths: np.ndarray
    num_bytes: int


class Encoder:
    """Encodes rows of a document table with the tokenizer in `folder`.

    workers: processes, or workers of the fan-out; 0 decides: threads where the tokenizer brings its own, else processes for a
    large corpus. fan_out: 'none', or the kind of task runner to open at `address`.
    """

    def __init__(self, folder: Path, workers: int, corpus_bytes: int, fan_out: str = "none", address: str = "") -> None:
        self.folder = Path(folder)
        self.tokenizer = load_tokenizer(folder)
        self.vocab_size, self.bos_id, self.eos_id = self.tokenizer.vocab_size, self.tokenizer.bos_id, self.tokenizer.eos_id
        self._fan_out, self._address = fan_out, address
        self._workers = workers or self._default_workers(corpus_bytes)
        self._open = ExitStack()
        self._pool: Executor | None = None

    @property
    def batch_bytes(self) -> int:
        """Bytes of text that make one unit of work."""
        return BATCH_BYTES if self._fan_out == "none" else TASK_BYTES

    def encode(self, documents: Path, split: str, ranges: Iterable[tuple[int, int]]) -> Iterator[EncodedRows]:
        """The split's documents in each (first row, number of rows), in the order given."""
        submit = self._submitter()
        waiting: deque[Pending] = deque()
        try:
            for first, count in ranges:
                waiting.append(submit(str(documents), split, first, count))
                if len(waiting) > 2 * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DataError("an encoding process died (out of memory?); set shard.workers lower and run again, it continues") from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._open.close()

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _default_workers(self, corpus_bytes: int) -> int:
        cores = min(MAX_WORKERS, available_cpus())
        if self._fan_out != "none":
            return cores
        return 1 if corpus_bytes <= SMALL_CORPUS or self.tokenizer.encodes_in_threads else cores

    def _submitter(self) -> Callable[[str, str, int, int], Pending]:
        """The function that submits one unit of work."""
        if self._fan_out != "none":
            runner = self._open.enter_context(open_runner(self._fan_out, self._workers, self._address, "shard.fan_out"))
            elsewhere = (str(self.folder.absolute()), self._fan_out != "threads")
            return lambda *rows: runner.submit(encode_rows_elsewhere, *elsewhere, *rows)
        if self._workers > 1:
            import multiprocessing

            spawn = multiprocessing.get_context("spawn")
            pool = self._pool = ProcessPoolExecutor(self._workers, mp_context=spawn, initializer=_start_worker, initargs=(os.getpid(),))
            folder = str(self.folder)
            return lambda *rows: pool.submit(encode_rows_elsewhere, folder, True, *rows)
        ahead = self._pool = ThreadPoolExecutor(1, thread_name_prefix="encode")  # the next unit, while the last is written
        return lambda *rows: ahead.submit(encode_rows, self.tokenizer, *rows)


def encode_rows(tokenizer: Tokenizer, documents: str, split: str, first: int, count: int) -> EncodedRows:
    """One unit of work."""
    import polars as pl

    from feebcore.data.documents import scan_parquet

    frame = scan_parquet(Path(documents)).select("text", "num_bytes", "split").slice(first, count).filter(pl.col("split") == split).collect()
    ids, lengths = framed(tokenizer, frame["text"].to_list())
    return EncodedRows(first, count, ids, lengths, int(frame["num_bytes"].sum()))


def encode_rows_elsewhere(folder: str, alone: bool, documents: str, split: str, first: int, count: int) -> EncodedRows:
    """One unit of work where the tokenizer may not be loaded yet. alone: this process is one of several, so it uses one core."""
    if alone:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if folder not in _loaded.tokenizers:
        _loaded.tokenizers = {folder: load_tokenizer(folder)}
    return encode_rows(_loaded.tokenizers[folder], documents, split, first, count)


def framed(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """BOS + ids + EOS of every text, one after another, in the stored type; and their lengths, int64 [texts].
    Raises DataError for an id outside the vocabulary."""
    encoded = tokenizer.encode_batch(texts)
    lengths = np.fromiter((len(ids) for ids in encoded), dtype=np.int64, count=len(encoded)) + 2
    ends = np.cumsum(lengths)
    flat = np.empty(int(lengths.sum()), dtype=np.int64 if any(np.asarray(ids).dtype.itemsize > 4 for ids in encoded) else np.int32)
    for ids, end in zip(encoded, ends.tolist(), strict=True):
        flat[end - len(ids) - 1 : end - 1] = ids
    flat[ends - lengths] = tokenizer.bos_id
    flat[ends - 1] = tokenizer.eos_id
    return stored_ids(flat, tokenizer.vocab_size, token_dtype(tokenizer.vocab_size)), lengths


def row_ranges(num_bytes: np.ndarray, chosen: np.ndarray, batch_bytes: int, first_row: int = 0) -> Iterator[tuple[int, int]]:
    """Cut rows from `first_row` on into units of about `batch_bytes` (at least one row): (first row, number of rows).

    num_bytes int64 [rows], chosen bool [rows]: rows of the split that is encoded.
    """
    if first_row >= len(num_bytes):
        return
    weight = np.where(chosen[first_row:], num_bytes[first_row:], num_bytes[first_row:] // SKIPPED_WEIGHT)
    unit = np.cumsum(weight) // batch_bytes
    starts = np.concatenate([[0], np.flatnonzero(np.diff(unit)) + 1, [len(weight)]])
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        yield first_row + begin, end - begin


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
