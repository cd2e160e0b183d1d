"""Batches made ahead by a thread, in order, while the model is busy with earlier ones."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from feebcore.protocols import Batch


class Prefetch:
    """The same batches as `source.batch(step, rank, world)`, the next `depth` of them made ahead by one thread.

    Steps are expected one after another; asking for another one starts anew from there. rank, world: whose rows, where a call does
    not say. pin: copy them into page-locked memory, for copies to a GPU that overlap its work. wait_seconds: time spent in `batch`,
    summed. Use as a context manager, or call `close`; a process that does neither still ends.
    """

    def __init__(self, source: Any, depth: int = 2, rank: int = 0, world: int = 1, pin: bool = False) -> None:
        self.source, self.rank, self.world = source, rank, world
        self.wait_seconds = 0.0
        self._depth, self._pin = depth, pin
        self._expected: tuple[int, int, int] | None = None  # step, rank, world of the first of `_ahead`
        self._ahead: deque[Future[Batch]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def batch(self, step: int, rank: int | None = None, world: int | None = None) -> Batch:
        """As of the source; an error of the thread is raised here."""
        began = time.perf_counter()
        rank, world = self.rank if rank is None else rank, self.world if world is None else world
        if self._expected != (step, rank, world):
            self._forget()
        while len(self._ahead) <= self._depth:
            self._ahead.append(self._thread.submit(self._make, step + len(self._ahead), rank, world))
        try:
            batch = self._ahead.popleft().result()
        except BaseException:
            self._forget()
            raise
        self._expected = (step + 1, rank, world)
        self.wait_seconds += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """End the thread; batches that nobody asked for are dropped."""
        self._forget()
        self._thread.shutdown(wait=True, cancel_futures=True)

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
        return pinned(batch) if self._pin else batch


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which `.to(device, non_blocking=True)` overlaps other work."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return dataclasses.replace(batch, **{name: value.pin_memory() for name, value in values.items() if value is not None})
