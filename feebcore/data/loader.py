"""Token store to batches: stateless in the step, so that resuming is exact and costs nothing.

Sample i of a run is slot i % batch_size of step i // batch_size. The order part says which window a sample index
means, the packing part what a window holds; ranks take the slots rank::world. The global stream of batches is
therefore the same for any number of ranks or micro-batches.
"""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.config import Part
from feebcore.protocols import Batch, Order, Packing

if TYPE_CHECKING:
    from feebcore.data.store import TokenStore


def make_batches(store: TokenStore, packing: Part, order: Part, batch_size: int, seq_len: int, seed: int) -> BatchSource:
    """Build the packing and order parts over `store` and join them. Raises DataError when the text is shorter than a window."""
    windows: Packing = packing.build(store, seq_len)
    return BatchSource(store, windows, order.build(windows.num_windows, seed), batch_size, seq_len)


@dataclass(frozen=True)
class BatchSource:
    """`batch(step)` gives the `step`-th batch of `batch_size` windows of `seq_len` tokens, whatever was asked before."""

    store: TokenStore
    packing: Packing
    order: Order
    batch_size: int
    seq_len: int

    @property
    def num_windows(self) -> int:
        """Windows of one epoch."""
        return self.packing.num_windows

    @property
    def steps_per_epoch(self) -> float:
        return self.packing.num_windows / self.batch_size

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """This rank's rows of one step: tokens, targets int64 [B / world, T], and what the packing adds."""
        if self.batch_size % world:
            raise ValueError(f"batch_size {self.batch_size} does not divide over {world} ranks")
        import torch

        samples = np.arange(rank, self.batch_size, world, dtype=np.int64) + step * self.batch_size
        packed = self.packing.windows(self.order(samples))
        tokens = torch.from_numpy(packed.tokens.astype(np.int64, copy=False))
        optional = [None if a is None else torch.from_numpy(a) for a in (packed.mask, packed.doc_ids, packed.positions)]
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), *optional)


class Prefetch:
    """The same batches, made ahead by one thread. Asking for another step than the next one starts anew from there.

    wait_seconds: how long `batch` has stood waiting for data, summed. Use as a context manager, or call `close`.
    """

    def __init__(self, source: Any, depth: int = 2) -> None:
        self.source = source
        self.wait_seconds = 0.0
        self._depth = depth
        self._next: tuple[int, int, int] | None = None  # step, rank, world of the thread's next item
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """As BatchSource.batch; an error of the thread is raised here."""
        if self._next != (step, rank, world):
            self._restart(step, rank, world)
        began = time.perf_counter()
        item = self._queue.get()
        self.wait_seconds += time.perf_counter() - began
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._next = (step + 1, rank, world)
        return item

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        while self._thread is not None and self._thread.is_alive():
            try:
                self._queue.get(timeout=0.01)
            except queue.Empty:
                pass
        self._thread, self._next = None, None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _restart(self, step: int, rank: int, world: int) -> None:
        self.close()
        self._stop, self._queue = threading.Event(), queue.Queue(maxsize=self._depth)
        self._thread = threading.Thread(target=self._fill, args=(step, rank, world, self._queue, self._stop), daemon=True, name="prefetch")
        self._thread.start()
        self._next = (step, rank, world)

    def _fill(self, step: int, rank: int, world: int, out: queue.Queue[Batch | BaseException], stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                item: Batch | BaseException = self.source.batch(step, rank, world)
            except BaseException as error:  # handed to whoever asks for this step
                item = error
            out.put(item)
            if isinstance(item, BaseException):
                return
            step += 1
