"""Bulk encoding through tiktoken: the codec's ids or none of it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feeb_data import BpeConfig, tiktoken_encoding
from feeb_data import bpe as bpe_module
from feeb_data.bpe import BpeTokenizer, BpeTrainer, pattern

CORPUS = [Path(bpe_module.__file__).read_text(), *tiktoken_encoding.NASTY, "naïve café 東京 привет мир 🙂 " * 20, "1234567890 " * 50]
HARD = st.text(st.sampled_from("ab ZX01\n\t\r'\"sSdlvr.,(){}é東\u017f\ufb06 \u2028\x85\x1c\u3000<|>_\u0301"), max_size=200)


def nothing(done: float, total: float) -> None:
    pass


@pytest.fixture(scope="module", params=["single", "group"])
def bpe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    trainer = BpeTrainer(BpeConfig(vocab_size=700, digits=request.param))
    return trainer.train(lambda: iter(CORPUS * 3), tmp_path_factory.mktemp("bpe"), nothing)


def codec(tokenizer: BpeTokenizer, text: str) -> list[int]:
    return tokenizer._model.encode(text, add_special_tokens=False).ids


@settings(max_examples=400, deadline=None)
@given(text=HARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@example("'\u017f'S don'T\u0301")
def test_ids_are_those_of_the_codec(bpe: BpeTokenizer, text: str) -> None:
    assert bpe.encoder == "tiktoken"
    assert bpe.encode(text) == codec(bpe, text)


def test_ids_are_those_of_the_codec_on_real_code_and_prose(bpe: BpeTokenizer) -> None:
    paths = [*Path(np.__file__).parent.rglob("*.py"), *Path(pytest.__file__).parents[1].glob("_pytest/*.py")]
    texts = [path.read_text() for path in sorted(paths)[:120]]
    for text, ids in zip(texts, bpe.encode_batch(texts), strict=True):
        if len(text) <= bpe_module.PIECE:
            assert ids.tolist() == codec(bpe, text)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    texts = [text for text in CORPUS for _ in range(30)] + ["", "x" * 40_000]
    expected = [codec(bpe, text) for text in texts]
    monkeypatch.setattr(tiktoken_encoding, "num_threads", lambda: threads)
    encoding = tiktoken_encoding.BulkEncoding(tiktoken_encoding.ranks_of(bpe._model), pattern(bpe._digits))
    assert [ids.tolist() for ids in encoding.encode_batch(texts)] == expected


def test_one_thread_when_parallelism_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tiktoken_encoding.num_threads() == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda ranks, expression: (ranks, expression.replace(r"\s+(?!\S)|", "")),
        lambda ranks, expression: (ranks, expression.replace("(?i:", "(?:")),
        lambda ranks, expression: (ranks, expression.replace(r"[\r\n]*", "")),
        lambda ranks, expression: (_swapped(ranks), expression),
    ],
    ids=["blanks", "case", "line ends", "merge order"],
)
def test_the_self_test_finds_a_difference_and_the_codec_is_used(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch, damage: Callable) -> None:
    tokenizer = BpeTokenizer(bpe._model, bpe._digits)
    right = tiktoken_encoding.BulkEncoding

    def wrong(ranks: dict[bytes, int], expression: str) -> tiktoken_encoding.BulkEncoding:
        return right(*damage(ranks, expression))

    monkeypatch.setattr(tiktoken_encoding, "BulkEncoding", wrong)
    decision = tokenizer.choose_encoder(())
    assert decision["encoder"] == tokenizer.encoder == "huggingface"
    assert "other" in decision["why"]
    assert [ids.tolist() for ids in tokenizer.encode_batch(CORPUS)] == [codec(tokenizer, text) for text in CORPUS]


def _swapped(ranks: dict[bytes, int]) -> dict[bytes, int]:
    """Two early merges change places."""
    return {token: {256: 300, 300: 256}.get(i, i) for token, i in ranks.items()}


def test_texts_of_the_corpus_can_show_a_difference_too(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = BpeTokenizer(bpe._model, bpe._digits)
    whole = tiktoken_encoding.BulkEncoding.encode_batch
    monkeypatch.setattr(
        tiktoken_encoding.BulkEncoding,
        "encode_batch",
        lambda self, texts: [i[:-1] if t == "odd" else i for t, i in zip(texts, whole(self, texts), strict=True)],
    )
    assert tokenizer.choose_encoder(["even"])["encoder"] == "tiktoken"
    assert tokenizer.choose_encoder(["even", "odd"]) == {
        "encoder": "huggingface",
        "texts_compared": len(tiktoken_encoding.NASTY) + 2,
        "why": "1 of 2 texts of the corpus have other ids",
    }


def test_other_unicode_tables_are_found(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tiktoken_encoding.different_classes() == ""
    tiktoken_encoding.different_classes.cache_clear()
    monkeypatch.setattr(tiktoken_encoding, "CLASSES", (r"[a-w]+", r"\p{L}+"))
    monkeypatch.setattr("tiktoken.Encoding.encode_ordinary", lambda self, text: [ord("a")])
    assert tiktoken_encoding.different_classes() == "U+0062 for [a-w]+"
    tiktoken_encoding.different_classes.cache_clear()


@pytest.mark.slow
def test_the_libraries_agree_on_every_code_point() -> None:
    assert tiktoken_encoding.different_classes(step=1) == ""


def test_a_lone_surrogate_is_refused_by_both(bpe: BpeTokenizer) -> None:
    for encoder in bpe.encoders:
        tokenizer = BpeTokenizer(bpe._model, bpe._digits)
        tokenizer.encoder = encoder
        with pytest.raises(UnicodeEncodeError):
            tokenizer.encode("a\udc80")
    with pytest.raises(ValueError, match="one of tiktoken, huggingface"):
        tokenizer.encoder = "other"
