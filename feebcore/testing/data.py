"""What tokenizers, filters and orders promise."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.model.build import choose
from feebcore.testing.framework import Candidate, check, require

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "Zähler 12345, naïve café — 漢字 🙂\r\n\ttabs  and   spaces",
    "<|endoftext|> <s></s> <bos> [BOS] <|im_start|>",
    "",
    "\x00\x1f\x7f\ufeff\u200d",
    " " * 300 + "x" * 300,
]


def train_tokenizer(subject: Candidate, folder: Path) -> Any:
    small = {"vocab_size": 300} if "vocab_size" in subject.spec.config.model_fields else {}
    part = choose("tokenizers", subject.part.dump() | small, subject.registry)
    return part.build().train(lambda: iter(TEXTS * 20), folder, lambda done, total: None)


@check(
    "tokenizers", meaning="Text is lost or changed, so bits per byte is a number about other text; look for normalisation, stripped spaces or unknown tokens."
)
def text_round_trip(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text in TEXTS:
            require(tokenizer.decode(tokenizer.encode(text)) == text, f"{text[:40]!r} comes back as {tokenizer.decode(tokenizer.encode(text))[:40]!r}")


@check("tokenizers", meaning="Text that looks like a special token becomes one, so a document can end itself or inject a role.")
def no_injection(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        special = {tokenizer.bos_id, tokenizer.eos_id}
        require(len(special) == 2 and all(0 <= i < tokenizer.vocab_size for i in special), f"bos {tokenizer.bos_id}, eos {tokenizer.eos_id}")
        for text in [*TEXTS, tokenizer.decode([tokenizer.bos_id]), tokenizer.decode([tokenizer.eos_id])]:
            ids = tokenizer.encode(text)
            require(not special & set(ids), f"{text[:40]!r} contains a special token after encoding")
            require(all(0 <= i < tokenizer.vocab_size for i in ids), f"{text[:40]!r} has an id outside 0..{tokenizer.vocab_size - 1}")


@check("tokenizers", meaning="Encoding many texts at once differs from one at a time, so shards and prompts disagree.")
def batch_equals_single(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
            require(np.asarray(ids).tolist() == list(tokenizer.encode(text)), f"{text[:40]!r} differs in a batch")


@check("tokenizers", meaning="A saved tokenizer is another one when loaded, so ids lose their meaning.")
def tokenizer_saves_and_loads(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        again = subject.part.build().load(Path(folder))
        for name in ("vocab_size", "bos_id", "eos_id"):
            require(getattr(again, name) == getattr(tokenizer, name), f"{name} is {getattr(again, name)} after load, was {getattr(tokenizer, name)}")
        for text in TEXTS:
            require(list(again.encode(text)) == list(tokenizer.encode(text)), f"{text[:40]!r} has other ids after load")


@check("orders", meaning="Some windows are seen twice and some never; an order must visit each once an epoch.")
def each_window_once(subject: Candidate) -> None:
    if getattr(subject.spec.config, "repeats", False):
        return  # curricula and mixtures that say so
    for windows in (1, 2, 37, 256):
        order = subject.part.build(windows, 3)
        for epoch in range(2):
            seen = order(np.arange(epoch * windows, (epoch + 1) * windows))
            require(sorted(seen.tolist()) == list(range(windows)), f"epoch {epoch} of {windows} windows is no permutation")


@check("orders", meaning="A window depends on what was asked before, so a resumed run sees other data.")
def order_is_stateless(subject: Candidate) -> None:
    order, again = subject.part.build(100, 3), subject.part.build(100, 3)
    whole = order(np.arange(150))
    pieces = np.concatenate([again(np.arange(140, 150)), again(np.arange(0, 140))])
    require(np.array_equal(whole, np.concatenate([pieces[10:], pieces[:10]])), "asking in other pieces gives other windows")


@check("filters", meaning="A filter changes the columns, or rows depend on how the table is cut.")
def filter_keeps_the_table(subject: Candidate) -> None:
    import polars as pl

    texts = [f"Document {i} says that the number {i * 7} is written here, in a sentence of ordinary length.\n" * 3 for i in range(40)] + ["", "x"]
    frame = pl.DataFrame(
        {"text": texts, "source": ["s"] * len(texts), "key": [f"{i:03}" for i in range(len(texts))], "num_bytes": [len(t.encode()) for t in texts]}
    )
    found = subject.part.build()(frame.lazy()).collect()
    require(set(frame.columns) <= set(found.columns), f"columns {found.columns}")
    again = subject.part.build()(found.select(frame.columns).lazy()).collect()
    require(again.height == found.height, f"run on its own result it keeps {again.height} of {found.height}")
