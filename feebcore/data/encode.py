"""Documents to token ids, in this process or in several, always in order.

Worker processes are spawned, never forked (the tokenizers library and zarr do not survive a fork once used), load the
tokenizer from its folder, and end by themselves when their parent is gone.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feebcore.data.tokenizers import load_tokenizer
from feebcore.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from feebcore.protocols import Tokenizer

SMALL_CORPUS = 256 << 20  # bytes; below it, starting processes costs more than it gains
MAX_WORKERS = 16

_worker_tokenizer: Tokenizer | None = None


class Encoder:
    """Encodes frames of documents (column text) as BOS + ids + EOS each. workers: processes; 0 decides by corpus size."""

    batch_bytes = 4 << 20

    def __init__(self, folder: Path, workers: int, corpus_bytes: int) -> None:
        self._tokenizer = load_tokenizer(folder)
        self.vocab_size, self.bos_id, self.eos_id = self._tokenizer.vocab_size, self._tokenizer.bos_id, self._tokenizer.eos_id
        if workers == 0:
            workers = min(MAX_WORKERS, os.cpu_count() or 1) if corpus_bytes > SMALL_CORPUS else 1
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        if workers > 1:
            import multiprocessing

            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(str(folder), os.getpid()))

    def encode(self, frames: Iterable[pl.DataFrame]) -> Iterator[tuple[pl.DataFrame, list[np.ndarray]]]:
        """Each frame with its documents' ids, in the order given; a few frames are in flight at a time."""
        if self._pool is None:
            for frame in frames:
                yield frame, _framed(self._tokenizer, frame["text"].to_list())
            return
        waiting: deque[tuple[pl.DataFrame, Future[list[np.ndarray]]]] = deque()
        try:
            for frame in frames:
                waiting.append((frame, self._pool.submit(_encode_in_worker, frame["text"].to_list())))
                if len(waiting) > 2 * self._workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise DataError("an encoding process died (out of memory?); set shard.workers lower and run again, it continues") from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Encoder:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()


def _framed(tokenizer: Tokenizer, texts: Sequence[str]) -> list[np.ndarray]:
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    return [np.concatenate([bos, ids, eos]) for ids in tokenizer.encode_batch(texts)]


def _start_worker(folder: str, parent: int) -> None:
    global _worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core a process

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _worker_tokenizer = load_tokenizer(folder)


def _encode_in_worker(texts: list[str]) -> list[np.ndarray]:
    assert _worker_tokenizer is not None
    return _framed(_worker_tokenizer, texts)
