"""Batches made ahead by threads, in order, while the model is busy with earlier ones."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from feebcore.protocols import Batch


class Prefetch:
    """The same batches as `source.batch(step, rank, world)`, `depth` of them made ahead by `workers` threads.

    Steps are expected one after another; asking for another one starts anew from there. rank, world: whose rows, where a
    call does not say. pin: copy them into page-locked memory, for copies to a GPU beside its work; default: where there is
    a GPU. wait_seconds: how long `batch` has stood waiting, summed. A forked child starts threads of its own. Use as a
    context manager, or call `close`; a process that does neither still ends.
    """

    def __init__(self, source: Any, depth: int = 2, workers: int = 1, rank: int = 0, world: int = 1, pin: bool | None = None) -> None:
        self.source, self.rank, self.world = source, rank, world
        self.wait_seconds = 0.0
        self._depth, self._workers, self._pin = max(1, depth), workers, pin
        self._expected: tuple[int, int, int] | None = None  # step, rank, world of the first of `_ahead`
        self._ahead: deque[Future[Batch]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()

    def batch(self, step: int, rank: int | None = None, world: int | None = None) -> Batch:
        """As of the source; an error of a thread is raised here."""
        rank, world = self.rank if rank is None else rank, self.world if world is None else world
        if self._process != os.getpid():  # a fork takes no thread along
            self._threads, self._expected, self._process = None, None, os.getpid()
            self._ahead.clear()
        if self._expected != (step, rank, world):
            self._forget()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="prefetch")
        while len(self._ahead) < self._depth:
            self._ahead.append(self._threads.submit(self._make, step + len(self._ahead), rank, world))
        self._expected = (step + 1, rank, world)
        wanted = self._ahead.popleft()
        began = time.perf_counter()
        try:
            found = wanted.result()
        except BaseException:
            self._forget()
            raise
        self.wait_seconds += time.perf_counter() - began
        self._ahead.append(self._threads.submit(self._make, step + 1 + len(self._ahead), rank, world))
        return found

    def close(self) -> None:
        """End the threads; batches that are not asked for are dropped. It can be used again."""
        self._forget()
        if self._threads is not None and self._process == os.getpid():
            self._threads.shutdown(wait=True, cancel_futures=True)
        self._threads = None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _forget(self) -> None:
        for future in self._ahead:
            future.cancel()
        self._ahead.clear()
        self._expected = None

    def _make(self, step: int, rank: int, world: int) -> Batch:
        batch: Batch = self.source.batch(step, rank, world)
        if self._pin is None:
            import torch

            self._pin = torch.cuda.is_available()
        return pinned(batch) if self._pin else batch


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which `.to(device, non_blocking=True)` runs beside other work."""
    return Batch(**{f.name: None if (v := getattr(batch, f.name)) is None else v.pin_memory() for f in dataclasses.fields(batch)})
