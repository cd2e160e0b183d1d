"""Tokenizers: any text round-trips, specials are never parsed, long texts cost no more than short ones."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feeb_data.tokenizers.bpe import BpeConfig
from feeb_data.tokenizers.bpe import bpe as bpe_module
from feeb_data.tokenizers.bpe.bpe import BpeTokenizer, BpeTrainer
from feeb_data.tokenizers.byte.byte import ByteTrainer
from feeb_data.tokenizers.char import CharConfig
from feeb_data.tokenizers.char.char import CharTrainer
from feeb_data.tokenizers.text_pieces import pieces
from feeb_data.tokenizers.training import sample
from feeb_data.tokenizers.trie import TrieConfig, trie, word_cache
from feeb_data.tokenizers.unigram import UnigramConfig, unigram
from feebcore.config import NoOptions
from feebcore.data.tokenizers import load_tokenizer, save_part
from feebcore.errors import ArtifactError, DataError, Interrupted
from feebcore.parts import Part
from feebcore.protocols import Tokenizer, TokenizerTrainer
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


TRAINERS: dict[str, TokenizerTrainer] = {
    "byte": ByteTrainer(NoOptions()),
    "char": CharTrainer(CharConfig(max_characters=50)),
    "rustbpe": BpeTrainer(BpeConfig(vocab_size=500, trainer="rustbpe")),
    "unigram": unigram.UnigramTrainer(UnigramConfig(vocab_size=500)),
    "trie": trie.TrieTrainer(TrieConfig(vocab_size=500)),
}


@pytest.fixture(scope="module", params=["bpe", *TRAINERS])
def tokenizer(request: pytest.FixtureRequest, bpe: BpeTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "bpe":
        return bpe
    return TRAINERS[request.param].train(lambda: iter(CORPUS), tmp_path_factory.mktemp("tokenizer"), nothing)


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


@settings(max_examples=100, deadline=None)
@given(text=PYTHONISH, limit=st.integers(1, 12))
def test_pieces_join_to_the_text_within_the_limit(text: str, limit: int) -> None:
    found = pieces(text, limit)
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found) or found == [""]


def test_pieces_are_cut_between_pretokens(bpe: BpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With words shorter than the limit, cutting changes no id."""
    text = "".join(CORPUS[:3]) * 3
    whole = bpe.encode(text)
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


@pytest.mark.parametrize("name", ["rustbpe", "unigram", "trie"])
def test_other_trainers_are_deterministic_and_load_to_the_same(tmp_path: Path, name: str) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        trained = TRAINERS[name].train(lambda: iter(CORPUS), folder, nothing)
        assert trained.vocab_size == 500
    (file,) = (path.name for path in (tmp_path / "a").iterdir())
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    loaded = TRAINERS[name].load(tmp_path / "a")
    assert (loaded.vocab_size, loaded.bos_id, loaded.eos_id) == (500, 498, 499)
    assert [loaded.encode(text) for text in CORPUS] == [trained.encode(text) for text in CORPUS]


def test_rustbpe_learns_the_vocabulary_of_the_huggingface_trainer_up_to_ties(bpe: BpeTokenizer, tmp_path: Path) -> None:
    other = train(tmp_path, vocab_size=600, trainer="rustbpe")
    assert len(bpe.ranks.keys() & other.ranks.keys()) > 0.97 * 598
    lengths = [sum(len(t.encode(text)) for text in CORPUS) for t in (bpe, other)]
    assert lengths[1] == pytest.approx(lengths[0], rel=0.01)


def test_rustbpe_knows_no_minimum_frequency() -> None:
    assert BpeConfig(trainer="rustbpe").min_frequency == 1
    with pytest.raises(ValueError, match="needs trainer huggingface"):
        BpeConfig(trainer="rustbpe", min_frequency=3)


def test_the_trie_takes_the_longest_piece_then_characters_then_bytes() -> None:
    codec = trie.TrieTokenizer(["é", "東"], ["th", "the", "there", "re", " the"])
    spelt = lambda text: [codec.decode([i]) if i >= 256 else i for i in codec.encode(text)]  # noqa: E731
    assert spelt("there") == ["there"]
    assert spelt("therX") == ["the", ord("r"), ord("X")]
    assert spelt("thé京") == ["th", "é", *"京".encode()]
    assert spelt("to the") == [ord("t"), ord("o"), " the"]
    assert spelt("th3re") == ["th", ord("3"), "re"]


@settings(max_examples=100, deadline=None)
@given(text=TEXT | PYTHONISH)
def test_words_of_the_trie_join_to_the_text(text: str) -> None:
    assert "".join(trie.WORDS.findall(text)) == text


def test_unigram_takes_the_most_probable_cut(tmp_path: Path) -> None:
    """Against a brute force over all cuts, for short words."""
    trained = TRAINERS["unigram"].train(lambda: iter(CORPUS), tmp_path, nothing)
    score = dict(json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"])
    ids = {piece: i for i, piece in enumerate(score)}

    def best(word: str) -> float:
        return max([score[word[:n]] + (best(word[n:]) if word[n:] else 0.0) for n in range(1, len(word) + 1) if word[:n] in score])

    pieces_of = {i: piece for piece, i in ids.items()}
    for word in ("return", "tokenizer", "encoded", "assert", "xqzxq", "settings"):
        assert sum(score[pieces_of[i]] for i in trained.encode(word)) == pytest.approx(best(word), abs=1e-4)


def test_forgetting_words_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = TRAINERS["trie"].train(lambda: iter(CORPUS), tmp_path, nothing)
    expected = [trained.encode(text) for text in CORPUS]
    monkeypatch.setattr(word_cache, "MAX_REMEMBERED", 50)
    again = TRAINERS["trie"].load(tmp_path)
    assert [again.encode(text) for text in CORPUS * 2] == expected * 2


def test_a_vocabulary_the_corpus_cannot_fill_says_how_far_it_got(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"supports a vocabulary of \d+, not 60000.*vocab_size to at most \d+"):
        train(tmp_path, vocab_size=60_000)


def test_no_text_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        CharTrainer(CharConfig()).train(lambda: iter([]), tmp_path, nothing)


def test_a_sample_is_spread_over_the_documents(tmp_path: Path) -> None:
    texts = [f"document {i} " * 20 for i in range(100)]
    taken = list(sample(lambda: iter(texts), 5000, 1_000_000, [0.0, 1.0]))
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
    with pytest.raises(ArtifactError, match="not a tokenizer folder"):
        load_tokenizer(tmp_path)
    (tmp_path / "part.json").write_text('{"name": "bpe", "config": {"vocab_size": 600}}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"is not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "line", [lambda n: "word and 12 " * (n // 12), lambda n: "x" * n, lambda n: "東京" * (n // 6), lambda n: " " * n], ids=["words", "letters", "cjk", "blanks"]
)
def test_a_long_line_is_encoded_in_linear_time(bpe: BpeTokenizer, line: Callable[[int], str]) -> None:
    """2 MB here; test_a_twenty_megabyte_line does 20."""
    text = line(2_000_000)
    began = time.process_time()
    (ids,) = bpe.encode_batch([text])
    assert time.process_time() - began < 8
    assert bpe.decode(ids.tolist()) == text


@pytest.mark.slow
def test_a_twenty_megabyte_line(bpe: BpeTokenizer) -> None:
    import resource

    text = "word and 12 letters;" * (20_000_000 // 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (ids,) = bpe.encode_batch([text])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 600  # MB
    assert bpe.decode(ids.tolist()) == text
