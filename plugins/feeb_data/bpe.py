"""Tokenizer `bpe`: byte-level byte-pair encoding, trained by Hugging Face tokenizers.

Text is cut into pretokens by a pinned expression (GPT-4's, digits single by default), merges never cross them. The two
special ids are appended after the learnt vocabulary and are not known to the codec, so `<|endoftext|>` in a document is
encoded as the characters it is made of. The 256 bytes are always in the vocabulary: any text round-trips.

Long texts are encoded in pieces of at most PIECE characters, cut where a letter or digit is followed by something else.
No pretoken spans such a place and the expression looks back at nothing, so the ids are those of the whole text. Only a
run without any such place (64 K letters, or 64 K characters of punctuation or blanks) is cut at the limit itself, which
bounds time and memory; it ends a pretoken there, always at the same place for the same text.

ASCII pieces, most of code and English, take a shorter way: Python's `re` cuts them with the same expression in ASCII
classes, and each distinct pretoken is encoded once and remembered. A test holds both ways to the same ids.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.errors import DataError
from feebcore.files import write_atomic
from feebcore.protocols import Progress

if TYPE_CHECKING:
    from feeb_data import BpeConfig

NUM_SPECIAL = 2
PIECE = 64 * 1024  # characters
MAX_REMEMBERED = 400_000  # distinct pretokens, about 100 MB
DIGITS = {"single": "", "group": "{1,3}"}

_CUT = re.compile(r"(?<=[^\W_])(?=[\x00-/:-@\[-`{-\x7f\u3000-\u3003\uff01-\uff0f])")  # after a letter or digit, before none


def pattern(digits: str, letter: str = r"\p{L}", number: str = r"\p{N}") -> str:
    """The pretoken expression. digits: 'single' makes each digit a pretoken, 'group' up to three. letter, number:
    members of a character class."""
    digit = f"[{number}]" + DIGITS[digits]
    return rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n{letter}{number}]?[{letter}]+|{digit}| ?[^\s{letter}{number}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def pieces(text: str, limit: int = PIECE) -> list[str]:
    """`text` in parts of at most `limit` characters, cut where no pretoken spans, else at the limit."""
    if len(text) <= limit:
        return [text]
    found, start = [], 0
    while len(text) - start > limit:
        end = start + limit
        for reach in (256, limit):  # near the end first: it is nearly always there
            last = None
            for match in _CUT.finditer(text, max(start + 1, end - reach), end + 1):
                last = match.start()
            if last is not None and last > start:
                end = last
                break
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


class BpeTokenizer:
    """Codec over a trained model. vocab_size counts BOS (vocab_size - 2) and EOS (vocab_size - 1)."""

    def __init__(self, model: Any, digits: str) -> None:
        self._model = model
        self._words = re.compile(pattern(digits, "A-Za-z", "0-9"), re.ASCII)
        self.vocab_size = model.get_vocab_size(with_added_tokens=False) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1
        self._byte_level = {i: model.pre_tokenizer.pre_tokenize_str(chr(i))[0][0] for i in range(128)}  # how byte-level BPE spells bytes
        self._number: dict[str, int] = {}  # pretoken -> its place in _begin and _length, which say where in _ids its ids lie
        self._num_ids = 0
        self._length, self._begin, self._ids = np.empty(1024, np.int64), np.empty(1024, np.int64), np.empty(4096, np.int32)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n], no special ids. The result does not depend on what else is in the batch."""
        parts = [pieces(text) for text in texts]
        other = [piece for piece in chain.from_iterable(parts) if not piece.isascii()]
        encoded = iter(self._model.encode_batch_fast(other, add_special_tokens=False) if other else ())
        result = []
        for text_parts in parts:
            ids = [self._encode_ascii(p) if p.isascii() else np.array(next(encoded).ids, dtype=np.int32) for p in text_parts]
            result.append(ids[0] if len(ids) == 1 else np.concatenate(ids))
        return result

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i < self.bos_id], skip_special_tokens=False)

    def token_bytes(self, token: int) -> int:
        """How many bytes of text a token stands for (0 for BOS and EOS)."""
        return 0 if token >= self.bos_id else len(self._model.id_to_token(token))

    def _encode_ascii(self, text: str) -> np.ndarray:
        words = self._words.findall(text)
        distinct = set(words)
        if new := [word for word in distinct if word not in self._number]:
            if len(self._number) + len(new) > MAX_REMEMBERED:
                self._forget()
                new = list(distinct)
            self._remember(new)
        which = np.fromiter(map(self._number.__getitem__, words), dtype=np.int64, count=len(words))
        lengths = self._length[which]
        before = np.cumsum(lengths) - lengths  # a ragged gather: each word's run of ids out of the flat list
        places = np.arange(int(lengths.sum())) + np.repeat(self._begin[which] - before, lengths)
        return self._ids[places]

    def _remember(self, words: list[str]) -> None:
        """Encode ASCII pretokens on their own and keep word -> number, number -> run of ids."""
        tokenize = self._model.model.tokenize  # past the pre-tokenizer: these are pretokens
        encoded = [[token.id for token in tokenize(word.translate(self._byte_level))] for word in words]
        first, lengths = len(self._number), np.fromiter(map(len, encoded), dtype=np.int64, count=len(words))
        self._number.update(zip(words, range(first, first + len(words)), strict=True))
        self._length = _grown(self._length, first, lengths)
        self._begin = _grown(self._begin, first, self._num_ids + np.cumsum(lengths) - lengths)
        self._ids = _grown(self._ids, self._num_ids, np.fromiter(chain.from_iterable(encoded), dtype=np.int32))
        self._num_ids += int(lengths.sum())

    def _forget(self) -> None:
        self._number.clear()
        self._num_ids = 0


def _grown(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """`array` with `more` written from `used` on; its capacity doubles when it is too small."""
    if used + len(more) > len(array):
        array = np.concatenate([array[:used], np.empty(max(used, 2 * len(more)), array.dtype)])
    array[used : used + len(more)] = more
    return array


class BpeTrainer:
    """Learns merges from at most `sample_chars` of the documents, spread evenly, each cut at `max_document_chars`."""

    def __init__(self, config: BpeConfig) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: Progress) -> BpeTokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        config = self._config
        model = Tokenizer(models.BPE())
        model.pre_tokenizer = _pre_tokenizer(config.digits)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size - NUM_SPECIAL,
            min_frequency=config.min_frequency,
            special_tokens=[],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        self._watched(model, trainer, texts, progress)
        reached = model.get_vocab_size(with_added_tokens=False) + NUM_SPECIAL
        if reached < config.vocab_size:
            raise DataError(
                f"the corpus supports a vocabulary of {reached}, not {config.vocab_size}: no pair of tokens is left that occurs "
                f"{config.min_frequency} times; set tokenizer.tokenizer.vocab_size to at most {reached}, or add text"
            )
        write_atomic(folder / "tokenizer.json", model.to_str(pretty=True))
        return BpeTokenizer(model, config.digits)

    def load(self, folder: Path) -> BpeTokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        try:
            return BpeTokenizer(Tokenizer.from_file(str(path)), self._config.digits)
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{path} is no tokenizer ({error}); run the tokenizer stage again") from error

    def _watched(self, model: Any, trainer: Any, texts: Callable[[], Iterable[str]], progress: Progress) -> None:
        """Train in a thread, so that this one can report, and be interrupted, while the Rust code runs for seconds."""
        state = [0.0, 1.0]
        failure: list[BaseException] = []

        def work() -> None:
            try:
                model.train_from_iterator(self._sample(texts, state), trainer)
            except BaseException as error:  # raised again below
                failure.append(error)

        thread = threading.Thread(target=work, daemon=True, name="train tokenizer")
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
            progress(state[0], state[1])
        if failure:
            raise failure[0]

    def _sample(self, texts: Callable[[], Iterable[str]], state: list[float]) -> Iterator[str]:
        """The texts to learn from; `state` holds characters taken and characters wanted."""
        config = self._config
        total = sum(min(len(text), config.max_document_chars) for text in texts())
        share = min(1.0, config.sample_chars / total) if config.sample_chars and total else 1.0
        state[1] = max(1.0, total * share)
        seen = 0
        for text in texts():
            head = text[: config.max_document_chars]
            seen += len(head)
            if state[0] <= seen * share:  # every document while all of it fits, else evenly spread ones
                state[0] += len(head)
                yield from pieces(head)


def _pre_tokenizer(digits: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    split = pre_tokenizers.Split(Regex(pattern(digits)), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(config: BpeConfig) -> BpeTrainer:
    return BpeTrainer(config)
