"""Documents per second of bulk tokenisation beside Hugging Face's encode_batch, on real text of this machine.

    python benchmarks/tokenising.py [MEGABYTES] [VOCAB_SIZE] [THREADS] [ROUNDS]

All get the same threads, the same documents in the same batches and the same trained model; rounds are interleaved and the
median of the ratios is printed. The first round's ids are compared, every one.
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

BATCH = 512


def main(megabytes: int = 100, vocab_size: int = 32768, threads: int = 2, rounds: int = 5) -> None:
    os.environ |= {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
    from feeb_data import BpeConfig, bulk
    from feeb_data.bpe import BpeTrainer

    bulk.num_threads = lambda: threads  # type: ignore[assignment]
    texts = list(documents(megabytes * 10**6))
    size = sum(len(text.encode()) for text in texts)
    for trainer in ("rustbpe", "huggingface"):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            config = BpeConfig(vocab_size=vocab_size, sample_chars=30_000_000, trainer=trainer)
            tokenizer = BpeTrainer(config).train(lambda: iter(texts), Path(folder), lambda done, total: None)
            print(f"trained {vocab_size} ids on 30 M characters by {trainer} in {time.monotonic() - began:.1f} s")
    decision = tokenizer.choose_encoder(texts[:200])
    print(f"{size / 1e6:.0f} MB in {len(texts)} documents; feeb encodes with {decision['encoder']} {decision['why']}; {threads} threads")
    model: Any = tokenizer._model
    ways: dict[str, Callable[[list[str]], list[Any]]] = {
        "feeb": tokenizer.encode_batch,
        "encode_batch_fast": lambda batch: [e.ids for e in model.encode_batch_fast(batch, add_special_tokens=False)],
        "encode_batch": lambda batch: [e.ids for e in model.encode_batch(batch, add_special_tokens=False)],
    }
    different, tokens = compare(ways["feeb"], ways["encode_batch"], texts)
    print(f"ids: {different} of {len(texts)} documents differ, {tokens} tokens")
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, encode in ways.items():
            began = time.monotonic()
            for batch in batches(texts):
                encode(batch)
            rates[name].append(len(texts) / (time.monotonic() - began))
    for name, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates["encode_batch"], strict=True)]
        print(
            f"{name:<18} {statistics.median(found):7.0f} documents/s {statistics.median(found) * size / len(texts) / 1e6:6.1f} MB/s   {statistics.median(ratios):.2f} x encode_batch ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def batches(texts: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(texts), BATCH):
        yield texts[begin : begin + BATCH]


def compare(one: Callable[[list[str]], list[Any]], other: Callable[[list[str]], list[Any]], texts: list[str]) -> tuple[int, int]:
    """Documents whose ids differ, and how many tokens there are."""
    different = tokens = 0
    for batch in batches(texts):
        for a, b in zip(one(batch), other(batch), strict=True):
            different += list(a) != b
            tokens += len(b)
    return different, tokens


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
