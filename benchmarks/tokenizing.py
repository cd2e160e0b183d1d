"""Documents per second of bulk tokenization compared with Hugging Face's encode_batch, on real text of this machine.

    python benchmarks/tokenizing.py [MEGABYTES] [VOCAB_SIZE] [THREADS] [PARTS]

All get the same threads, the same documents in the same batches and the same trained model. They take turns at every batch, so
that other load falls on all alike; the batches are dealt out to PARTS parts and the median of their ratios is printed, by the
clock and by CPU time. All ids are compared.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from machine_text import documents

BATCH = 256


def main(megabytes: int = 100, vocab_size: int = 32768, threads: int = 2, parts: int = 5) -> None:
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    import tokenizers

    from feeb_data.tokenizers.bpe import BpeConfig, tiktoken_encoding
    from feeb_data.tokenizers.bpe.bpe import BpeTrainer

    tiktoken_encoding.num_threads = lambda: threads  # type: ignore[assignment]
    texts = list(documents(megabytes * 10**6))
    size = sum(len(text.encode()) for text in texts)
    for trainer in ("rustbpe", "huggingface"):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            config = BpeConfig(vocab_size=vocab_size, sample_chars=30_000_000, trainer=trainer)
            tokenizer = BpeTrainer(config).train(lambda: iter(texts), Path(folder), lambda done, total: None)
            model: Any = tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json")
            print(f"trained {vocab_size} ids on 30 M characters by {trainer} in {time.monotonic() - began:.1f} s")
    print(f"{size / 1e6:.0f} MB in {len(texts)} documents; {threads} threads")
    ways: dict[str, Callable[[list[str]], list[Any]]] = {
        "feeb": tokenizer.encode_batch,
        "encode_batch_fast": lambda batch: [e.ids for e in model.encode_batch_fast(batch, add_special_tokens=False)],
        "encode_batch": lambda batch: [e.ids for e in model.encode_batch(batch, add_special_tokens=False)],
    }
    walls: list[dict[str, float]] = [dict.fromkeys(ways, 0.0) for _ in range(parts)]
    cpus: list[dict[str, float]] = [dict.fromkeys(ways, 0.0) for _ in range(parts)]
    different = tokens = 0
    for number, batch in enumerate(batches(texts)):
        part, encoded = number % parts, {}
        for name in list(ways)[:: 1 if number % 2 else -1]:
            wall, cpu = time.monotonic(), time.process_time()
            encoded[name] = ways[name](batch)
            walls[part][name] += time.monotonic() - wall
            cpus[part][name] += time.process_time() - cpu
        different += sum(list(a) != b for a, b in zip(encoded["feeb"], encoded["encode_batch"], strict=True))
        tokens += sum(map(len, encoded["feeb"]))
    print(f"ids: {different} of {len(texts)} documents differ from encode_batch, {tokens} tokens")
    for name in ways:
        ratios = [wall["encode_batch"] / wall[name] for wall in walls]
        work = [cpu["encode_batch"] / cpu[name] for cpu in cpus]
        rate = len(texts) / sum(wall[name] for wall in walls)
        print(
            f"{name:<18} {rate:6.0f} documents/s {rate * size / len(texts) / 1e6:5.1f} MB/s; x encode_batch: {statistics.median(ratios):.2f} "
            f"by the clock ({min(ratios):.2f} to {max(ratios):.2f}), {statistics.median(work):.2f} by CPU time"
        )


def batches(texts: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(texts), BATCH):
        yield texts[begin : begin + BATCH]


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
