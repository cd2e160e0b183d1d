"""What reading training sequences costs, and how it grows with the corpus.

    python benchmarks/loader.py [--megabytes 10 100 1000] [--seq-len 1024] [--batch 32] [--rounds 11]

Synthetic tokens (4 bytes of text a token, documents of 600 tokens on average), warm files, one process:
rows      random rows from the mapped store, interleaved rounds with a loop over np.memmap of a flat file of the same
          tokens (as nanoGPT reads), processor time of this thread; median ratio, above 1: the store is faster
batches   whole batches, order and packing included (processor time), and the seconds that opening and indexing takes
waiting   share of a step that a loop of 100 ms steps waits for data, the median step's and all of them
remote    compressed, and from a web server on this machine, first (nothing cached) and second time over the same rows
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np

from feebcore.data.loader import Prefetch, make_batches
from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter, default_shard_tokens
from feebcore.parts import Part
from feebcore.registry import get_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "data"))
VOCAB = 32_000


def write(root: Path, num_tokens: int, compress: bool = False) -> np.ndarray:
    """A store of Zipf-like tokens; returns them flat."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(2, np.minimum(rng.lognormal(5.9, 1.0, 2 * num_tokens // 600), 50_000)).astype(np.int64)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]
    flat = np.minimum(VOCAB - 3, rng.pareto(1.0, int(lengths.sum())) * 20).astype(np.uint16)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    flat[offsets[:-1]], flat[offsets[1:] - 1] = VOCAB - 2, VOCAB - 1
    shard_tokens = default_shard_tokens(4 * num_tokens)
    writer = SplitWriter(root / "tokens.zarr", "train", vocab_size=VOCAB, bos_id=VOCAB - 2, eos_id=VOCAB - 1, shard_tokens=shard_tokens, compress=compress)
    writer.append(flat[a:b] for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True))
    writer.finish(lengths * 4, np.zeros(len(lengths)), ["synthetic"])
    return flat


def part(kind: str, name: str, **options: object) -> Part:
    spec = get_registry().resolve(kind, name)
    return Part(kind, spec, spec.config(**options))


def seconds(call: Callable[[], object], rounds: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    times = []
    for _ in range(rounds):
        begin = clock()
        call()
        times.append(clock() - begin)
    return statistics.median(times)


def rows(store: TokenStore, flat: np.memmap, batch: int, length: int, rounds: int) -> None:
    random = np.random.default_rng(1)
    ratios, speeds = [], []
    for _ in range(rounds):
        starts = random.integers(0, store.num_tokens - length, (20, batch))
        loop = seconds(lambda starts=starts: [np.stack([flat[s : s + length].astype(np.int64) for s in row]) for row in starts], clock=time.thread_time)
        own = seconds(lambda starts=starts: [store.read_batch(row, length) for row in starts], clock=time.thread_time)
        assert np.array_equal(store.read_batch(starts[0], length), np.stack([flat[s : s + length] for s in starts[0]]))
        ratios.append(loop / own)
        speeds.append(starts.size * length / own)
    print(f"  rows of {length:5} x {batch:4}: {statistics.median(ratios):5.2f} x np.memmap ({min(ratios):.2f} to {max(ratios):.2f}), ", end="")
    print(f"{statistics.median(speeds) / 1e6:.0f} M tokens/s")


def measure(folder: Path, megabytes: int, seq_len: int, batch: int, rounds: int) -> None:
    num_tokens = megabytes * 1_000_000 // 4
    tokens = write(folder, num_tokens)
    tokens.tofile(folder / "flat.bin")
    del tokens
    flat = np.memmap(folder / "flat.bin", dtype=np.uint16, mode="r")
    path = folder / "tokens.zarr"
    opened, checked = (seconds(lambda v=v: TokenStore.open(path, "train", verify=v)) for v in (False, True))
    store = TokenStore.open(path, "train", verify=False)
    size = f"{megabytes} MB of text, {store.num_tokens / 1e6:.1f} M tokens, {store.num_documents} documents"
    print(f"{size}: opened in {opened * 1e3:.0f} ms, with all tokens hashed {checked * 1e3:.0f} ms")
    rows(store, flat, batch, seq_len + 1, rounds)
    for packing, order in (("concat", "shuffled"), ("bestfit", "shuffled"), ("bos_aligned", "shuffled"), ("concat", "curriculum")):
        chosen = part("packings", packing), part("data_orders", order)
        build = functools.partial(make_batches, store, *chosen, batch, seq_len, 0, 10_000)
        made, loaded = seconds(build), seconds(build)
        data = build()
        numbers = iter(range(10_000))
        each = seconds(lambda data=data, numbers=numbers: data.batch(next(numbers)), 100, time.thread_time)
        waste = {k: round(v, 4) for k, v in data.packing.statistics.items() if k.endswith("share")}
        print(f"  {packing:11} {order:10}: made in {made:6.2f} s, again in {loaded:5.2f} s; {each * 1e3:5.2f} ms a batch; {waste}")
    waiting(store, seq_len, batch)


def waiting(store: TokenStore, seq_len: int, batch: int, step_seconds: float = 0.1) -> None:
    """A loop that computes meanwhile."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((600, 600)).astype(np.float32)
    for packing in ("concat", "bestfit"):
        data = make_batches(store, part("packings", packing, document_mask=True), part("data_orders", "shuffled"), batch, seq_len, 0)
        with Prefetch(data) as source:
            waits = []
            for step in range(60):
                begin = time.perf_counter()
                source.batch(step)
                waits.append(time.perf_counter() - begin)
                while time.perf_counter() - begin < step_seconds:
                    matrix @ matrix
        waits = waits[5:]
        print(f"  waiting, {packing}: {100 * statistics.median(waits) / step_seconds:.2f} % of the median step, ", end="")
        print(f"{100 * statistics.mean(waits) / step_seconds:.2f} % of all")


def remote(folder: Path, seq_len: int, batch: int) -> None:
    from range_server import Ranges

    starts = np.random.default_rng(2).integers(0, 9_000_000, batch)
    for compress in (False, True):
        root = folder / f"compressed-{compress}"
        write(root, 10_000_000, compress)
        size = sum(p.stat().st_size for p in (root / "tokens.zarr").rglob("*") if p.is_file())
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(root)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, where in (("local", root / "tokens.zarr"), ("http", f"http://127.0.0.1:{server.server_port}/tokens.zarr")):
            store = TokenStore.open(where, "train", verify=False)
            first, second = (seconds(lambda store=store: store.read_batch(starts, seq_len + 1)) for _ in range(2))
            print(f"  {'zstd' if compress else 'plain'} {name:5}: a batch of {batch}: first {first * 1e3:7.1f} ms, again {second * 1e3:6.2f} ms; ", end="")
            print(f"{size / 1e6:.1f} MB on disk for {store.num_tokens / 1e6:.1f} M tokens")
        server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), megabytes, options.seq_len, options.batch, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        print("stores that cannot be mapped")
        remote(Path(folder), options.seq_len, options.batch)


if __name__ == "__main__":
    main()
