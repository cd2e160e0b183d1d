"""Tokenizers: any text round-trips, specials are never parsed, long texts cost no more than short ones."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feeb_data import BpeConfig, ByteConfig, CharConfig
from feeb_data import bpe as bpe_module
from feeb_data.bpe import BpeTokenizer, BpeTrainer, pieces
from feeb_data.tokenizers import build_byte, build_char
from feebcore.config import Part
from feebcore.data.tokenizers import load_tokenizer, save_part
from feebcore.errors import ArtifactError, DataError, Interrupted
from feebcore.protocols import Tokenizer
from feebcore.registry import get_registry

CORPUS = [Path(bpe_module.__file__).read_text(), Path(__file__).read_text(), "naïve café 東京 привет мир 🙂 " * 20, "1234567890 " * 50]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
PYTHONISH = st.text(st.sampled_from("ab ZX01\n\t\r'\"s.,(){}é東 \u2028\x85\x1c\u3000<|>_"), max_size=200)


def nothing(done: float, total: float) -> None:
    pass


def train(folder: Path, **options: object) -> BpeTokenizer:
    return BpeTrainer(BpeConfig(**options)).train(lambda: iter(CORPUS), folder, nothing)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    return train(tmp_path_factory.mktemp("bpe"), vocab_size=600)


@pytest.fixture(scope="module", params=["byte", "char", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "bpe":
        return bpe
    trainer = build_byte(ByteConfig()) if request.param == "byte" else build_char(CharConfig(max_characters=50))
    return trainer.train(lambda: iter(CORPUS), folder, nothing)


@settings(max_examples=150, deadline=None)
@given(text=TEXT | PYTHONISH)
@example("")
@example("<|endoftext|>")
@example("\x00\ufeff\x85 \r\n")
def test_any_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.bos_id not in ids
    assert tokenizer.eos_id not in ids


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXT | PYTHONISH, max_size=6))
def test_a_batch_gives_what_each_text_gives_alone(tokenizer: Tokenizer, texts: list[str]) -> None:
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [tokenizer.encode(text) for text in texts]


def test_special_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    for text in ("<|endoftext|>", "<|bos|><s></s>" * 3, "<|endoftext|>" * 1000):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("a b"), tokenizer.eos_id]) == "a b"


@settings(max_examples=300, deadline=None)
@given(text=PYTHONISH | TEXT.filter(str.isascii))
def test_the_short_way_for_ascii_gives_the_ids_of_the_codec(bpe: BpeTokenizer, text: str) -> None:
    assert bpe.encode(text) == bpe._model.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("digits", ["single", "group"])
def test_the_short_way_agrees_on_real_code_for_both_digit_rules(tmp_path: Path, digits: str) -> None:
    tokenizer = train(tmp_path, vocab_size=500, digits=digits)
    for path in sorted(Path(np.__file__).parent.glob("*.py"))[:20] + sorted(Path(pytest.__file__).parents[1].glob("_pytest/*.py")):
        text = path.read_text()
        assert tokenizer.encode(text) == tokenizer._model.encode(text, add_special_tokens=False).ids
    numbers = tokenizer.encode_batch(["1234"])[0]
    assert (len(numbers) == 4) == (digits == "single")


@settings(max_examples=100, deadline=None)
@given(text=PYTHONISH, limit=st.integers(1, 12))
def test_pieces_join_to_the_text_within_the_limit(text: str, limit: int) -> None:
    found = pieces(text, limit)
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found) or found == [""]


def test_pieces_are_cut_between_pretokens(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With words shorter than the limit, cutting changes no id."""
    text = "".join(CORPUS[:3]) * 3
    whole = bpe._model.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(bpe_module, "pieces", lambda t: pieces(t, 300))
    assert bpe.encode(text) == whole


def test_training_is_deterministic_and_loads_to_the_same(tmp_path: Path, bpe: BpeTokenizer) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        train(tmp_path / name, vocab_size=600)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    spec = get_registry().resolve("tokenizers", "bpe")
    save_part(tmp_path / "a", Part("tokenizers", spec, BpeConfig(vocab_size=600)))
    loaded = load_tokenizer(tmp_path / "a")
    assert loaded.vocab_size == 600
    assert (loaded.bos_id, loaded.eos_id) == (598, 599)
    assert loaded.encode(CORPUS[0]) == bpe.encode(CORPUS[0])


def test_forgetting_pretokens_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_module, "MAX_REMEMBERED", 50)
    tokenizer = train(tmp_path, vocab_size=400)
    for text in CORPUS * 2:
        assert tokenizer.encode(text) == tokenizer._model.encode(text, add_special_tokens=False).ids


def test_a_vocabulary_the_corpus_cannot_fill_says_how_far_it_got(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"supports a vocabulary of \d+, not 60000.*vocab_size to at most \d+"):
        train(tmp_path, vocab_size=60_000)


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        build_char(CharConfig()).train(lambda: iter([]), tmp_path, nothing)


def test_a_sample_is_spread_over_the_documents(tmp_path: Path) -> None:
    texts = [f"document {i} " * 20 for i in range(100)]
    trainer = BpeTrainer(BpeConfig(sample_chars=5000))
    taken = list(trainer._sample(lambda: iter(texts), [0.0, 1.0]))
    assert 4000 < sum(map(len, taken)) < 6000
    assert texts[0] in taken
    assert any(t in taken for t in texts[80:])


def test_training_can_be_stopped_while_the_library_works(tmp_path: Path) -> None:
    calls = []

    def stop(done: float, total: float) -> None:
        calls.append(done)
        raise Interrupted("asked to")

    with pytest.raises(Interrupted):
        BpeTrainer(BpeConfig(vocab_size=2000)).train(lambda: iter(CORPUS * 200), tmp_path, stop)
    assert not (tmp_path / "tokenizer.json").exists()


def test_an_error_of_the_texts_comes_out(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "some text"
        raise DataError("the third row is broken")

    with pytest.raises(DataError, match="third row"):
        BpeTrainer(BpeConfig()).train(broken, tmp_path, nothing)


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no tokenizer folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "part.json").write_text('{"name": "bpe", "config": {"vocab_size": 600}}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "line", [lambda n: "word and 12 " * (n // 12), lambda n: "x" * n, lambda n: "東京" * (n // 6), lambda n: " " * n], ids=["words", "letters", "cjk", "blanks"]
)
def test_a_long_line_is_encoded_in_linear_time(bpe: BpeTokenizer, line: Callable[[int], str]) -> None:
    """2 MB here; test_a_fifty_megabyte_line does 50."""
    text = line(2_000_000)
    began = time.process_time()
    (ids,) = bpe.encode_batch([text])
    assert time.process_time() - began < 8
    assert bpe.decode(ids.tolist()) == text


@pytest.mark.slow
def test_a_fifty_megabyte_line(bpe: BpeTokenizer) -> None:
    import resource

    text = "word and 12 letters;" * (50_000_000 // 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (ids,) = bpe.encode_batch([text])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1500  # MB
    assert bpe.decode(ids.tolist()) == text
