"""BPE by tiktoken gives the ids of Hugging Face's codec, and decodes as it does."""

import json
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers, trainers

from feeb_data.tokenizers.bpe import BpeConfig, tiktoken_encoding
from feeb_data.tokenizers.bpe import bpe as bpe_module
from feeb_data.tokenizers.bpe.bpe import BpeTokenizer, BpeTrainer
from feeb_data.tokenizers.byte_level import empty_model
from feeb_data.tokenizers.text_pieces import PIECE

NASTY = [
    "",
    " ",
    "\r\n\r\n  \n\t x\n",
    "a  b   c    \n  d",
    "don't DON'T don'T 'S 'LL 'll'Ve 're'd'M ' ''s it\u2019s '\u017f '\ufb06 l'\u00e9t\u00e9",
    "'SX 'sx 'LLx 'llx 'Rea 'VEst 'table 'Dx",
    "1234567890 3.14e-10 0x1F \u0661\u0662\u0663 \u216b\u00bd 1\u0301",
    "<|endoftext|><|im_start|>user<s></s>[BOS]<bos><unk><0x0A>\u2581\u0120",
    "caf\u00e9 cafe\u0301 na\u00efve \u0130I\u0131i \u00dfSS \ufb00 \u01c5",
    "\u6771\u4eac\u90fd \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \uac00\u1100\u1161",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad",
    "\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000 \u180e\u200b\u200c\u200d\u2060\ufeff x",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000e0041\ufe0f",
    "_under__score_ a_b1_c2 __init__ ___",
    "https://example.org/a?b=c&d=%20#e \\n \\u0041 ```py\n```\t\t\t",
    *("x" * 700, " " * 700 + "y", "\n" * 700, "ab" * 700, "=" * 700 + "\r\n", "1" * 700, "\u6771" * 700),
]
CORPUS = [Path(bpe_module.__file__).read_text(), *NASTY, "naïve café 東京 привет мир 🙂 " * 20, "1234567890 " * 50]
HARD = st.text(st.sampled_from("ab ZX01\n\t\r'\"sSdlvr.,(){}é東\u017f\ufb06 \u2028\x85\x1c\u3000<|>_\u0301"), max_size=200)


def nothing(done: float, total: float) -> None:
    pass


def standard_library() -> list[str]:
    """About 3 MB of the text of the quickstart."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text(encoding="utf-8") for path in paths][:120]


@pytest.fixture(scope="module", params=["single", "group"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[BpeTokenizer, Any]:
    """Ours, and the codec that Hugging Face reads from our file."""
    folder = tmp_path_factory.mktemp("bpe")
    ours = BpeTrainer(BpeConfig(vocab_size=700, digits=request.param)).train(lambda: iter(CORPUS * 3), folder, nothing)
    return ours, tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(max_examples=400, deadline=None)
@given(text=HARD | st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@example("'\u017f'S don'T\u0301")
def test_ids_are_those_of_hugging_face(trained: tuple[BpeTokenizer, Any], text: str) -> None:
    ours, theirs = trained
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


def test_ids_are_those_of_hugging_face_on_nasty_texts_and_the_standard_library(trained: tuple[BpeTokenizer, Any]) -> None:
    ours, theirs = trained
    texts = [*NASTY, *(text for text in standard_library() if len(text) <= PIECE)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids, text[:80]


def test_merges_written_are_those_that_hugging_face_learned(tmp_path: Path) -> None:
    """Trained on the standard library with the options of the quickstart, but fewer ids and less text."""
    texts = standard_library()
    ours = BpeTrainer(BpeConfig(vocab_size=2048)).train(lambda: iter(texts), tmp_path, nothing)
    model = empty_model("single")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model.train_from_iterator(
        (piece for text in texts for piece in bpe_module.pieces(text)),
        trainers.BpeTrainer(vocab_size=2046, min_frequency=2, special_tokens=[], initial_alphabet=alphabet, show_progress=False),
    )
    learned, written = json.loads(model.to_str())["model"], json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    assert written["vocab"] == learned["vocab"]
    assert written["merges"] == learned["merges"]
    assert ours.vocab_size == 2048


@settings(max_examples=200, deadline=None)
@given(ids=st.lists(st.integers(0, 697), max_size=30))
def test_any_ids_decode_as_in_hugging_face(trained: tuple[BpeTokenizer, Any], ids: list[int]) -> None:
    ours, theirs = trained
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


CLASSES = (r"\p{L}+", r"\p{N}+", r"\s+", r"(?i:[sdmt]|ll|ve|re)+")


@pytest.mark.parametrize("expression", CLASSES)
def test_the_libraries_classes_of_characters_agree(expression: str) -> None:
    """The Unicode tables behind the pretoken expression, on every 37th code point: no block of letters is smaller."""
    import tiktoken

    text = "".join(chr(i) for i in [*range(0x250), *range(0x250, 0x110000, 37)] if not 0xD800 <= i < 0xE000)
    single_bytes = {bytes([i]): i for i in range(256)}
    matched = bytes(tiktoken.Encoding("class", pat_str=expression, mergeable_ranks=single_bytes, special_tokens={}).encode_ordinary(text)).decode()
    removed = pre_tokenizers.Split(Regex(expression), "removed").pre_tokenize_str(text)
    assert set(matched) == set(text) - set("".join(piece for piece, _ in removed))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_nothing(trained: tuple[BpeTokenizer, Any], monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    ours, _ = trained
    texts = [text for text in CORPUS for _ in range(30)] + ["", "x" * 40_000]
    expected = [ours.encode(text) for text in texts]
    monkeypatch.setattr(tiktoken_encoding, "num_threads", lambda: threads)
    assert [ids.tolist() for ids in BpeTokenizer(ours.ranks, ours.digits).encode_batch(texts)] == expected


def test_one_thread_when_parallelism_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert tiktoken_encoding.num_threads() == 1


def test_a_lone_surrogate_is_refused(trained: tuple[BpeTokenizer, Any]) -> None:
    with pytest.raises(UnicodeEncodeError):
        trained[0].encode("a\udc80")


def test_a_vocabulary_that_no_merges_make_is_refused() -> None:
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    with pytest.raises(AssertionError, match="not a merge of earlier tokens"):
        bpe_module.to_huggingface(ranks, "single")
