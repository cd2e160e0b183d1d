"""Batches made ahead by threads, in order, while the model is busy with earlier ones."""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from feebcore.protocols import Batch

CHEAP = 0.005
TRIALS = 3
RETRY = 64


class Prefetch:
    """The same batches as `source.batch(step, rank, world)`, `depth` of them made ahead by `workers` threads.

    Threads are used where they help. The first TRIALS batches are made when they are asked for, and so are all while that
    takes less than CHEAP of a step, or less than waiting for the threads does (looked at again after RETRY batches): waking
    a thread means passing Python's lock, which a busy machine may take 10 ms to give back.

    Steps are expected one after another; asking for another one starts anew from there. rank, world: whose rows, where a
    call does not say. pin: copy them into page-locked memory, for copies to a GPU beside its work; default: where there is
    a GPU. wait_seconds: how long `batch` has taken, summed. A forked child starts threads of its own. Use as a context
    manager, or call `close`; a process that does neither still ends.
    """

    def __init__(self, source: Any, depth: int = 2, workers: int = 1, rank: int = 0, world: int = 1, pin: bool | None = None) -> None:
        self.source, self.rank, self.world = source, rank, world
        self.wait_seconds = 0.0
        self._depth, self._workers, self._pin = max(1, depth), workers, pin
        self._expected: tuple[int, int, int] | None = None  # step, rank, world of the first of `_ahead`
        self._ahead: deque[Future[Batch]] = deque()
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._steps: deque[float] = deque(maxlen=8)  # seconds between a batch and the call for the next
        self._made: deque[float] = deque(maxlen=8)  # seconds to make one when it is asked for
        self._waited: deque[float] = deque(maxlen=8)  # seconds to get one from the threads
        self._without = 0  # so many batches without threads, then another try
        self._returned = 0.0

    def batch(self, step: int, rank: int | None = None, world: int | None = None) -> Batch:
        """As of the source; an error of a thread is raised here."""
        began = time.perf_counter()
        if self._returned:
            self._steps.append(began - self._returned)
        wanted = (step, self.rank if rank is None else rank, self.world if world is None else world)
        if self._process != os.getpid():  # a fork takes no thread along
            self._threads, self._expected, self._process = None, None, os.getpid()
            self._ahead.clear()
        if self._expected != wanted:
            self._forget()
        try:
            threaded = self._threads_help()
            if threaded:
                self._work_ahead(*wanted)
            times = self._waited if self._ahead else self._made
            found = self._ahead.popleft().result() if self._ahead else self._make(*wanted)
            if threaded:
                self._work_ahead(step + 1, *wanted[1:])
        except BaseException:
            self._forget()
            raise
        self._expected = (step + 1, *wanted[1:])
        self._returned = time.perf_counter()
        times.append(self._returned - began)
        self.wait_seconds += times[-1]
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

    def _threads_help(self) -> bool:
        if len(self._made) < TRIALS or not self._steps:
            return False
        cost = statistics.median(self._made)
        if len(self._waited) == self._waited.maxlen and statistics.median(self._waited) > cost:
            self._waited.clear()
            self._without = RETRY
        self._without = max(0, self._without - 1)
        return not self._without and cost > CHEAP * statistics.median(self._steps)

    def _work_ahead(self, step: int, rank: int, world: int) -> None:
        """Let threads make the batches from `step` on that are not begun."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="prefetch")
        while len(self._ahead) < self._depth:
            self._ahead.append(self._threads.submit(self._make, step + len(self._ahead), rank, world))

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
    fields: dict[str, Any] = {}
    for name in (f.name for f in dataclasses.fields(batch)):
        value = getattr(batch, name)
        fields[name] = None if value is None else value.pin_memory()
    return Batch(**fields)
