"""Random windows from the zarr token store beside np.memmap on a flat file of the same tokens.

    python benchmarks/token_windows.py SHARD_ARTIFACT [window]

Interleaved rounds in one process, CPU time of this thread; prints the median ratio (above 1: the store is faster).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from feebcore.data.store import TokenStore


def main(artifact: Path, window: int, rounds: int = 11, batch: int = 512) -> None:
    store = TokenStore.open(artifact / "tokens.zarr", "train", verify=False)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        tokens = np.asarray(store.read(0, store.num_tokens))
        tokens.tofile(file.name)
        flat = np.memmap(file.name, dtype=tokens.dtype, mode="r")
        random = np.random.default_rng(0)
        ratios = []
        for _ in range(rounds):
            starts = random.integers(0, store.num_tokens - window, batch)
            begin = time.thread_time()
            expected = np.stack([flat[s : s + window].astype(np.int64) for s in starts])
            middle = time.thread_time()
            found = store.windows(starts, window)
            end = time.thread_time()
            assert (found == expected).all()
            ratios.append((middle - begin) / (end - middle))
        print(f"windows of {window}: {statistics.median(ratios):.2f} x np.memmap ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 129)
