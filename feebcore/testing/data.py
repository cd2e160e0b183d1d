"""What tokenizers, packings, orders and filters promise."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.config import DataOrderConfig
from feebcore.data.loader import make_batches
from feebcore.data.store import TokenStore
from feebcore.data.store_writer import SplitWriter
from feebcore.parts import resolve_part
from feebcore.protocols import PackedSequences
from feebcore.testing.framework import Candidate, check, require, skip

TEXTS = [
    "def add(a, b):\n    return a + b\n",
    "Zähler 12345, naïve café — 漢字 🙂\r\n\ttabs  and   spaces",
    "<|endoftext|> <s></s> <bos> [BOS] <|im_start|>",
    "",
    "\x00\x1f\x7f\ufeff\u200d",
    " " * 300 + "x" * 300,
]


def arbitrary_texts(number: int = 60) -> list[str]:
    """Any code points at all but surrogates, and any bytes as far as they are UTF-8: none of it was trained on."""
    rng = np.random.default_rng(8)
    points = [rng.integers(0, limit, rng.integers(1, 40)) for limit in (128, 256, 0x3000, 0x110000) for _ in range(number // 5)]
    texts = ["".join(chr(p) for p in row.tolist() if not 0xD800 <= p < 0xE000) for row in points]
    return texts + [rng.bytes(40).decode("utf-8", "ignore") for _ in range(number // 5)]


def train_tokenizer(subject: Candidate, folder: Path) -> Any:
    small = {"vocab_size": 300} if "vocab_size" in subject.spec.config.model_fields else {}
    part = resolve_part("tokenizers", subject.part.dump() | small, subject.registry)
    texts = [*TEXTS * 20, Path(__file__).read_text(encoding="utf-8")]
    return part.build().train(lambda: iter(texts), folder, lambda done, total: None)


@check(
    "tokenizers",
    quick=True,
    meaning="Text is lost or changed, so bits per byte is a number about other text; look for normalization, stripped spaces or unknown tokens.",
)
def text_round_trip(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text in [*TEXTS, *arbitrary_texts()]:
            require(tokenizer.decode(tokenizer.encode(text)) == text, f"{text[:40]!r} comes back as {tokenizer.decode(tokenizer.encode(text))[:40]!r}")


@check("tokenizers", quick=True, meaning="Text that looks like a special token becomes one, so a document can end itself or inject a role.")
def no_injection(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        special = {tokenizer.bos_id, tokenizer.eos_id}
        require(len(special) == 2 and all(0 <= i < tokenizer.vocab_size for i in special), f"bos {tokenizer.bos_id}, eos {tokenizer.eos_id}")
        for text in [*TEXTS, tokenizer.decode([tokenizer.bos_id]), tokenizer.decode([tokenizer.eos_id])]:
            ids = tokenizer.encode(text)
            require(not special & set(ids), f"{text[:40]!r} contains a special token after encoding")
            require(all(0 <= i < tokenizer.vocab_size for i in ids), f"{text[:40]!r} has an id outside 0..{tokenizer.vocab_size - 1}")


@check("tokenizers", quick=True, meaning="Encoding many texts at once differs from one at a time, so shards and prompts disagree.")
def batch_equals_single(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
            require(np.asarray(ids).tolist() == list(tokenizer.encode(text)), f"{text[:40]!r} differs in a batch")


@check("tokenizers", meaning="A long text gets other ids alone than in a batch.")
def long_texts_encode_consistently(subject: Candidate) -> None:
    long = ["".join(TEXTS) * 400, "word " * 30_000, "x" * 70_000, "\u6771" * 70_000]
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text, ids in zip(long, tokenizer.encode_batch(long), strict=True):
            require(tokenizer.decode(np.asarray(ids).tolist()) == text, f"{len(text)} characters beginning {text[:20]!r} do not come back")
            require(np.array_equal(ids, tokenizer.encode(text)), f"{len(text)} characters beginning {text[:20]!r} differ in a batch")


@check("tokenizers", meaning="What a model may emit cannot be shown: sampling crashes in the middle of a run.")
def any_ids_decode(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        every = list(range(tokenizer.vocab_size))
        for ids in [*[[i] for i in every], every, every[::-1], np.random.default_rng(0).permutation(every).tolist()]:
            require(isinstance(tokenizer.decode(ids), str), f"decode({ids[:5]}…) gives no text")
        require(tokenizer.decode([tokenizer.bos_id, tokenizer.eos_id]) == "", "the special ids decode to text; they stand for none")


@check("tokenizers", meaning="A lone surrogate is not a valid character; replacing it silently changes the text.")
def lone_surrogates_are_refused(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        for text in ("\ud800", "ab\udc80cd", "\udc00\ud800"):
            try:
                ids = tokenizer.encode_batch(["fine", text])[1]
            except UnicodeEncodeError:
                continue
            require(False, f"{text!r} is encoded as {list(ids)[:8]}; raise UnicodeEncodeError, as str.encode does")


@check("tokenizers", quick=True, meaning="A tokenizer differs after saving and loading, so ids lose their meaning.")
def tokenizer_saves_and_loads(subject: Candidate) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = train_tokenizer(subject, Path(folder))
        again = subject.part.build().load(Path(folder))
        for name in ("vocab_size", "bos_id", "eos_id"):
            require(getattr(again, name) == getattr(tokenizer, name), f"{name} is {getattr(again, name)} after load, was {getattr(tokenizer, name)}")
        for text in TEXTS:
            require(list(again.encode(text)) == list(tokenizer.encode(text)), f"{text[:40]!r} has other ids after load")


BOS, EOS, VOCAB = 0, 1, 6000


@contextlib.contextmanager
def small_store() -> Iterator[TokenStore]:
    """About 4,000 tokens in documents of two sources, empty and long ones among them; no text token occurs twice, so that
    one can tell from a token where it stands."""
    rng = np.random.default_rng(0)
    lengths = [*rng.integers(0, 60, 60).tolist(), 0, 500, *rng.integers(0, 60, 40).tolist(), 150, 1]
    ends = np.cumsum(lengths)
    ids = rng.permutation(np.arange(2, VOCAB))
    documents = [np.concatenate([[BOS], ids[end - n : end], [EOS]]) for n, end in zip(lengths, ends.tolist(), strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        writer = SplitWriter(Path(folder) / "tokens.zarr", "train", vocab_size=VOCAB, bos_id=BOS, eos_id=EOS, shard_tokens=1024, chunk_tokens=256)
        writer.append(documents)
        writer.finish(np.array([max(1, n) for n in lengths]), np.array([0] * 62 + [1] * (len(lengths) - 62)), ["a", "b"])
        yield TokenStore.open(Path(folder) / "tokens.zarr", "train")


def all_sequences(subject: Candidate, store: TokenStore, seq_len: int) -> PackedSequences:
    packing = subject.part.build(store=store, seq_len=seq_len)
    require(packing.num_sequences >= 1, f"{packing.num_sequences} sequences of {store.num_tokens} tokens at seq_len {seq_len}")
    return packing.sequences(np.arange(packing.num_sequences))


@check("packings", quick=True, meaning="A model learns to predict something that is not the next token; look for off-by-one cuts and pieces put side by side.")
def targets_follow_inputs(subject: Candidate) -> None:
    with small_store() as store:
        flat = store.read(0, store.num_tokens).astype(np.int64)
        place = np.full(VOCAB, -1)
        place[flat] = np.arange(len(flat))
        last_tokens = {int(flat[end - 2]) for end in store.doc_offsets[1:]}
        for seq_len in (16, 33):
            packed = all_sequences(subject, store, seq_len)
            require(packed.tokens.shape[1] == seq_len + 1, f"tokens are {packed.tokens.shape}, not [B, {seq_len + 1}]")
            counted = np.ones(packed.tokens[:, 1:].shape, dtype=bool) if packed.mask is None else packed.mask
            require(counted.shape == packed.tokens[:, 1:].shape and counted.dtype == np.bool_, f"mask is {counted.dtype} {counted.shape}")
            for x, y in zip(packed.tokens[:, :-1][counted].tolist(), packed.tokens[:, 1:][counted].tolist(), strict=True):
                right = x == EOS if y == BOS else x in last_tokens if y == EOS else x == flat[place[y] - 1]
                require(right, f"token {y} is a target after {x}, in the text it follows {'EOS' if y == BOS else flat[place[y] - 1]}")
            text = packed.tokens[:, 1:][counted]
            text = text[text > EOS]
            require(len(np.unique(text)) == len(text), f"{len(text) - len(np.unique(text))} tokens are a target twice in an epoch")


@check("packings", quick=True, meaning="A sequence depends on what it is asked together with, so ranks and resumed runs see other data.")
def packing_is_stateless(subject: Candidate) -> None:
    with small_store() as store:
        whole = all_sequences(subject, store, 16)
        packing = subject.part.build(store=store, seq_len=16)
        indices = np.random.default_rng(1).integers(0, packing.num_sequences, 12)
        for piece in (indices, indices[:5], indices[7:8]):
            packed = packing.sequences(piece)
            for name, value in vars(packed).items():
                expected = getattr(whole, name)
                require((value is None) == (expected is None), f"{name} is there for some sequences only")
                require(value is None or np.array_equal(value, expected[piece]), f"{name} of sequence {piece[0]} depends on the sequences asked with it")


@check("packings", quick=True, meaning="Documents leak into each other, though doc_ids promise they do not.")
def packing_isolates_documents(subject: Candidate) -> None:
    masked = {"document_mask": True} if "document_mask" in subject.spec.config.model_fields else {}
    part = dataclasses.replace(subject.part, config=subject.part.config.model_copy(update=masked))
    with small_store() as store:
        packed = all_sequences(dataclasses.replace(subject, part=part), store, 16)
        if packed.doc_ids is None:
            skip("it gives no doc_ids, so it promises no isolation")
        flat = store.read(0, store.num_tokens)
        document = np.full(VOCAB, -1)
        document[flat] = np.searchsorted(store.doc_offsets, np.arange(len(flat)), side="right") - 1
        for row in range(len(packed.tokens)):
            tokens, ids = packed.tokens[row], packed.doc_ids[row]
            for number in np.unique(ids[ids >= 0]).tolist():
                documents = {int(document[t]) for t in tokens[:-1][ids == number] if t > EOS}
                require(len(documents) <= 1, f"document {number} of sequence {row} holds tokens of {len(documents)} documents")
            if packed.positions is not None:
                same = ids[1:] == ids[:-1]
                expected = np.where(same, packed.positions[row, :-1] + 1, 0)
                require(
                    np.array_equal(packed.positions[row, 1:][ids[1:] >= 0], expected[ids[1:] >= 0]),
                    f"positions of sequence {row} do not restart with documents",
                )
            if packed.mask is not None:
                across = np.flatnonzero(packed.mask[row, :-1] & (ids[1:] != ids[:-1]))
                require(not len(across), f"a target of sequence {row} lies in another document than its input")


@check("packings", quick=True, meaning="The reported padding or dropped fraction is wrong.")
def packing_statistics_are_right(subject: Candidate) -> None:
    with small_store() as store:
        packing = subject.part.build(store=store, seq_len=16)
        statistics = packing.statistics
        if not statistics:
            skip("it reports no statistics")
        packed = packing.sequences(np.arange(packing.num_sequences))
        flat = store.read(0, store.num_tokens).astype(np.int64)
        held = np.isin(flat, packed.tokens[packed.tokens > EOS])
        text = flat > EOS
        missing, framing = int((text & ~held).sum()), int((~text).sum())
        dropped = round(statistics["dropped_share"] * len(flat))
        require(missing <= dropped <= missing + framing, f"{missing} text tokens are in no sequence, but dropped_share is {dropped} of {len(flat)} tokens")
        pairs = zip(store.doc_offsets[:-1].tolist(), store.doc_offsets[1:].tolist(), strict=True)
        rows = [set(row.tolist()) for row in packed.tokens]
        long = [set(flat[a + 1 : b - 1].tolist()) for a, b in pairs if b - a > 2]
        cut = sum(not any(ids <= row for row in rows) for ids in long)
        empty = store.num_documents - len(long)
        said = round(statistics["cut_documents_share"] * store.num_documents)
        require(cut <= said <= cut + empty + framing, f"no sequence holds {cut} documents whole, cut_documents_share says {said}")
        ends = flat[store.doc_offsets[1:] - 2]  # what stands before a document's own EOS
        padding = (packed.tokens[:, 1:] == EOS) & ~np.isin(packed.tokens[:, :-1], ends)
        said = round(statistics["padding_share"] * packed.tokens.size)
        require(int(padding.sum()) <= said, f"{int(padding.sum())} of {packed.tokens.size} positions are padding, padding_share says {said}")


@check(
    "data_orders",
    quick=True,
    meaning="Training fails late, or a resumed run sees other data: a data order must return valid sequence indices, deterministically for every sample index.",
)
def order_works_in_the_loader(subject: Candidate) -> None:
    with small_store() as store:
        data = make_batches(store, resolve_part("packings", "concat", subject.registry), subject.part, batch_size=4, seq_len=8, seed=3, max_steps=200)
        samples = np.arange(4 * 200)
        sequences = data.data_order(samples)
        require(sequences.shape == samples.shape, f"{len(samples)} samples give sequences {sequences.shape}")
        require(
            int(sequences.min()) >= 0 and int(sequences.max()) < data.num_sequences, f"sequences {sequences.min()}..{sequences.max()} of {data.num_sequences}"
        )
        mixed = np.random.default_rng(2).permutation(samples)
        require(np.array_equal(data.data_order(mixed), sequences[mixed]), "asking for samples in another order gives other sequences")
        require(np.array_equal(data.data_order(samples[777:779]), sequences[777:779]), "asking for few samples gives other sequences")


@check("data_orders", quick=True, meaning="Some sequences are seen twice and some never; an order must visit each once per epoch.")
def each_sequence_once(subject: Candidate) -> None:
    assert issubclass(subject.spec.config, DataOrderConfig)
    if subject.spec.config.repeats:
        skip("its options say `repeats`")
    for sequences in (1, 2, 37, 256):
        order = subject.part.build(num_sequences=sequences, seed=3)
        for epoch in range(2):
            seen = order(np.arange(epoch * sequences, (epoch + 1) * sequences))
            require(sorted(seen.tolist()) == list(range(sequences)), f"epoch {epoch} of {sequences} sequences is not a permutation")


@check("data_orders", quick=True, meaning="A sequence depends on what was asked before, so a resumed run sees other data.")
def order_is_stateless(subject: Candidate) -> None:
    order, again = (subject.part.build(num_sequences=100, seed=3) for _ in range(2))
    whole = order(np.arange(150))
    pieces = np.concatenate([again(np.arange(140, 150)), again(np.arange(0, 140))])
    require(np.array_equal(whole, np.concatenate([pieces[10:], pieces[:10]])), "asking in other pieces gives other sequences")


@check("filters", quick=True, meaning="The filter changes the columns, or its result depends on the batch size.")
def filter_keeps_the_schema(subject: Candidate) -> None:
    import polars as pl

    texts = [f"Document {i} says that the number {i * 7} is written here, in a sentence of ordinary length.\n" * 3 for i in range(40)] + ["", "x"]
    frame = pl.DataFrame(
        {"text": texts, "source": ["s"] * len(texts), "key": [f"{i:03}" for i in range(len(texts))], "num_bytes": [len(t.encode()) for t in texts]}
    )
    filtered = subject.part.build()(frame.lazy()).collect()
    require(set(frame.columns) <= set(filtered.columns), f"columns {filtered.columns}")
    again = subject.part.build()(filtered.select(frame.columns).lazy()).collect()
    require(again.height == filtered.height, f"run on its own result it keeps {again.height} of {filtered.height}")


@check(
    "filters",
    quick=True,
    meaning="The filter changes text, but num_bytes still counts the old text, so bytes of the corpus are wrong; set it to the UTF-8 length of the new text.",
)
def sizes_follow_the_text(subject: Candidate) -> None:
    import polars as pl

    lines = [
        "  Spaces around, and\ttabs.  ",
        "UPPER and lower, naïve café, 東京",
        "See https://example.org or a@b.org, 100 % <b>bold</b> &amp; more.",
        "twice\ntwice\n\n\n",
    ]
    texts = [f"{line}\nDocument {i} is written here, in a sentence of ordinary length, as documents are.\n" * 4 for i in range(8) for line in lines]
    frame = pl.DataFrame({"text": texts, "source": "s", "key": [f"{i:03}" for i in range(len(texts))], "num_bytes": [len(t.encode()) for t in texts]})
    filtered = subject.part.build()(frame.lazy()).collect()
    for text, said in zip(filtered["text"], filtered["num_bytes"], strict=True):
        require(said == len(text.encode()), f"num_bytes is {said} for a text of {len(text.encode())} bytes, {text[:30]!r}")
