"""Bits per byte has one definition; these tests are that definition written a second time, slowly."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from feebcore.evaluate import scorer
from feebcore.protocols import ModelOutput

BOS, EOS = 0, 1


class Toy(nn.Module):
    """A causal model in four lines: each position sees a decayed sum of everything before it in its window."""

    def __init__(self, vocab_size: int, seq_len: int, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vocab_size, self.seq_len = vocab_size, seq_len
        self.embedding = nn.Embedding(vocab_size, width)
        self.lm_head = nn.Linear(width, vocab_size)

    def forward(self, tokens: torch.Tensor) -> ModelOutput:
        steps = torch.arange(tokens.shape[1])
        decay = torch.tril(0.9 ** (steps[:, None] - steps).clamp(min=0).float())
        return ModelOutput(torch.tanh(decay @ self.embedding(tokens)) * 3)


class Uniform(Toy):
    def __init__(self, vocab_size: int, seq_len: int) -> None:
        super().__init__(vocab_size, seq_len)
        nn.init.zeros_(self.lm_head.weight)
        nn.init.zeros_(self.lm_head.bias)


def make_store(documents: list[list[int]], num_bytes: list[int] | None = None) -> SimpleNamespace:
    flat = np.asarray([t for ids in documents for t in (BOS, *ids, EOS)], dtype=np.uint16)
    return SimpleNamespace(
        read=lambda a, b: flat[a:b],
        doc_offsets=np.cumsum([0] + [len(ids) + 2 for ids in documents]),
        doc_bytes=np.asarray(num_bytes or [3 * len(ids) for ids in documents]),
        num_documents=len(documents),
    )


def brute_force(model: Toy, ids: list[int], context: int, stride: int) -> float:
    """Nats of one document, one token at a time, from the sentence in the module's docstring."""
    full, total, scored = [BOS, *ids], 0.0, 0
    start = 0
    while scored < len(ids):
        stop = min(start + context, len(ids))
        log_probs = torch.log_softmax(model.lm_head(model(torch.tensor([full[start:stop]])).hidden).double(), -1)[0]
        for target in range(scored + 1, stop + 1):
            total -= log_probs[target - 1 - start, full[target]].item()
        scored = stop
        start += stride
    return total


def random_documents(seed: int, lengths: list[int], vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocab_size, n).tolist() for n in lengths]  # BOS and EOS ids too: they are text here


@pytest.mark.parametrize(("context", "stride"), [(8, 4), (8, 8), (8, 1), (7, 3), (1, 1), (64, 32)])
def test_equals_a_brute_force_over_every_token(context: int, stride: int) -> None:
    model = Toy(11, 8)
    documents = random_documents(1, [0, 1, 2, 7, 8, 9, 16, 17, 40], 11)
    found = scorer.score_documents(model, make_store(documents), context, stride)
    expected = [brute_force(model, ids, context, stride) for ids in documents]
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5, atol=1e-5)
    assert found.tokens.tolist() == [len(ids) for ids in documents]


def test_a_uniform_model_costs_log2_of_the_vocabulary_for_every_token_whatever_the_tokenizer() -> None:
    text_bytes = [100, 57]
    for vocab_size, lengths in ((256, [100, 57]), (50, [31, 20]), (1000, [9, 4])):
        documents = random_documents(0, lengths, vocab_size)
        score = scorer.score_store(Uniform(vocab_size, 16), make_store(documents, text_bytes))
        assert score.bits_per_byte == pytest.approx(math.log2(vocab_size) * sum(lengths) / sum(text_bytes), rel=1e-6)
        assert (score.tokens, score.bytes, score.documents) == (sum(lengths), 157, 2)


def test_the_result_does_not_depend_on_the_batch_size_nor_on_padding() -> None:
    model = Toy(19, 12)
    store = make_store(random_documents(3, [1, 5, 30, 12, 13, 100, 2], 19))
    alone = scorer.score_documents(model, store, batch_tokens=1)
    for size in (13, 64, 4096):
        np.testing.assert_allclose(scorer.score_documents(model, store, batch_tokens=size).nats, alone.nats, rtol=1e-6)


def test_a_document_that_fits_in_one_window_is_independent_of_stride_and_context() -> None:
    model, store = Toy(11, 64), make_store(random_documents(4, [10, 20, 64], 11))
    whole = scorer.score_store(model, store)
    assert scorer.score_store(model, store, stride=1).nats == pytest.approx(whole.nats, rel=1e-6)
    assert scorer.score_store(model, store, context=100).nats == pytest.approx(whole.nats, rel=1e-6)


def test_the_end_of_document_token_is_not_scored() -> None:
    model, documents = Toy(11, 8), random_documents(5, [6, 9], 11)
    store = make_store(documents)
    changed = SimpleNamespace(**vars(store))
    flat = store.read(0, 1000).copy()
    flat[store.doc_offsets[1:] - 1] = 7
    changed.read = lambda a, b: flat[a:b]
    assert scorer.score_store(model, changed).nats == scorer.score_store(model, store).nats


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 12), st.data())
def test_windows_score_every_token_once_with_enough_context(lengths: list[int], context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    tokens = np.asarray(lengths)
    starts = np.cumsum(tokens + 2) - (tokens + 2)
    windows = scorer.document_windows(starts, tokens, context, stride)
    seen: list[tuple[int, int]] = []
    for start, length, first, owner in zip(windows.start, windows.length, windows.first, windows.owner, strict=True):
        assert 0 <= first < length <= context
        begin = start - starts[owner]
        assert begin == 0 or first >= context - stride
        seen += [(owner, begin + t) for t in range(first, length)]
    assert sorted(seen) == [(d, t) for d, n in enumerate(lengths) for t in range(n)]


def test_chunked_logits_equal_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = Toy(11, 8), make_store(random_documents(6, [30, 50], 11))
    whole = scorer.score_store(model, store)
    monkeypatch.setattr(scorer, "CHUNK_ELEMENTS", 40)
    assert scorer.score_store(model, store).nats == pytest.approx(whole.nats, rel=1e-6)


def test_bfloat16_is_close_and_the_model_keeps_its_mode() -> None:
    model, store = Toy(11, 8), make_store(random_documents(7, [300], 11))
    model.train()
    exact, rounded = scorer.score_store(model, store), scorer.score_store(model, store, dtype="bf16")
    assert model.training
    assert rounded.nats == pytest.approx(exact.nats, rel=0.01)
    assert rounded.nats != exact.nats
    with pytest.raises(ValueError, match="bf17"):
        scorer.score_store(model, store, dtype="bf17")


def test_max_documents_takes_them_evenly_from_the_whole_split() -> None:
    model, documents = Toy(11, 8), random_documents(8, [5] * 30, 11)
    few = scorer.score_documents(model, make_store(documents), max_documents=3)
    everything = scorer.score_documents(model, make_store(documents))
    np.testing.assert_allclose(few.nats, everything.nats[[0, 14, 29]], rtol=1e-5)


def test_progress_ends_at_the_number_of_scored_tokens() -> None:
    told: list[tuple[float, float]] = []
    scorer.score_store(Toy(11, 8), make_store(random_documents(9, [40, 3], 11)), progress=lambda done, total: told.append((done, total)), batch_tokens=16)
    assert told[-1] == (43, 43)
    assert len(told) > 3


def test_pairs_equal_the_sum_over_the_continuation_and_cut_the_context_from_the_left() -> None:
    model = Toy(11, 8)
    pairs = [([BOS, 3], [4, 5]), ([BOS], [7]), ([BOS, *range(2, 11)], [4, 4, 4]), ([BOS, 2], [])]
    found = scorer.score(model, pairs)
    for (before, after), result in zip(pairs, found, strict=True):
        kept = [*before, *after][-9:]
        log_probs = torch.log_softmax(model.lm_head(model(torch.tensor([kept[:-1]])).hidden), -1)[0] if after else None
        expected = sum(float(log_probs.detach()[len(kept) - len(after) - 1 + i, t]) for i, t in enumerate(after)) if log_probs is not None else 0.0
        assert result.log_prob == pytest.approx(expected, abs=1e-5)
        assert result.tokens == len(after)
    with pytest.raises(ValueError, match="bos_id"):
        scorer.score(model, [([], [1])])
    with pytest.raises(ValueError, match="9 tokens"):
        scorer.score(model, [([BOS], [1] * 9)])


def test_greedy_says_whether_each_token_was_the_likeliest() -> None:
    model = Toy(11, 8)
    best = int(model.lm_head(model(torch.tensor([[BOS, 3]])).hidden)[0, -1].argmax())
    found = scorer.score(model, [([BOS, 3], [best]), ([BOS, 3], [(best + 1) % 11])])
    assert [f.greedy for f in found] == [True, False]


def test_rolling_scores_of_texts_add_up_to_the_store_score() -> None:
    model = Toy(300, 8)
    tokenizer = SimpleNamespace(bos_id=BOS, encode_batch=lambda texts: [np.asarray([b + 2 for b in t.encode()]) for t in texts])
    texts = ["def f():\n    return 'é'\n", "x", "", "a longer text than the window"]
    found = scorer.score_rolling(model, tokenizer, texts)
    store = make_store([[b + 2 for b in t.encode()] for t in texts], [len(t.encode()) for t in texts])
    whole = scorer.score_store(model, store)
    assert sum(f.nats for f in found) == pytest.approx(whole.nats, rel=1e-6)
    assert sum(f.bytes for f in found) == whole.bytes


def test_a_stride_that_would_leave_tokens_out_is_refused() -> None:
    with pytest.raises(ValueError, match="stride 9"):
        scorer.score_store(Toy(11, 8), make_store([[2, 3]]), stride=9)
