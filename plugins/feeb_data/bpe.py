"""Tokenizer `bpe`: byte-level byte-pair encoding, trained by Hugging Face tokenizers.

Text is cut into pretokens by a pinned expression (GPT-4's, digits single by default), merges never cross them. The two
special ids are appended after the learned vocabulary and are not known to the codec, so `<|endoftext|>` in a document is
encoded as the characters it is made of. The 256 bytes are always in the vocabulary: any text round-trips.

Long texts are encoded in pieces of at most PIECE characters, cut where a letter or digit is followed by something else.
No pretoken spans such a place and the expression looks back at nothing, so the ids are those of the whole text. Only a
run without any such place (64 K letters, or 64 K characters of punctuation or blanks) is cut at the limit itself, which
bounds time and memory; it ends a pretoken there, always at the same place for the same text.

Texts go through tiktoken when it proves to give the ids of the Hugging Face codec (tiktoken_encoding.py), else through the codec. The
codec and its `tokenizer.json` are the truth, whatever trained them: its own trainer, or rustbpe, several times faster.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feeb_data import tiktoken_encoding
from feebcore.errors import DataError
from feebcore.files import write_atomic
from feebcore.protocols import ProgressFn

if TYPE_CHECKING:
    from feeb_data import BpeConfig

NUM_SPECIAL = 2
PIECE = 64 * 1024  # characters
FEW_CHARS = 256 * 1024
DIGITS = {"single": "", "group": "{1,3}"}

_CUT = re.compile(r"(?<=[^\W_])(?=[\x00-/:-@\[-`{-\x7f\u3000-\u3003\uff01-\uff0f])")  # after a letter or digit, before none


def pattern(digits: str) -> str:
    """The pretoken expression. digits: 'single' makes each digit a pretoken, 'group' up to three."""
    digit = r"\p{N}" + DIGITS[digits]
    return rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digit}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


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
    """Codec over a trained model. vocab_size counts BOS (vocab_size - 2) and EOS (vocab_size - 1).

    encoder: which library turns text into ids, 'tiktoken' or 'huggingface'; decided by `choose_encoder`, by the first large batch,
    or set by whoever knows (a worker process told by its parent). The ids are the same either way.
    """

    encoders = ("tiktoken", "huggingface")
    encodes_in_threads = True

    def __init__(self, model: Any, digits: str) -> None:
        self._model, self._digits = model, digits
        self.vocab_size = model.get_vocab_size(with_added_tokens=False) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1
        self._bulk: tiktoken_encoding.BulkEncoding | None = None
        self._encoder = ""

    @property
    def encoder(self) -> str:
        if not self._encoder:
            self.choose_encoder(())
        return self._encoder

    @encoder.setter
    def encoder(self, name: str) -> None:
        if name not in self.encoders:
            raise ValueError(f"encoder must be one of {', '.join(self.encoders)}, not {name!r}")
        if name == "tiktoken" and self._bulk is None:
            self._bulk = tiktoken_encoding.BulkEncoding(tiktoken_encoding.ranks_of(self._model), pattern(self._digits))
        self._encoder = name

    def choose_encoder(self, texts: Sequence[str]) -> dict[str, Any]:
        """Take tiktoken if it gives the codec's ids on the self-test and on `texts`, else the codec. Returns what was
        decided and why, for a log and metrics."""
        found = tiktoken_encoding.open_encoding(self._model, pattern(self._digits))
        sample = [piece for text in texts for piece in pieces(text)]
        if not isinstance(found, str) and (number := tiktoken_encoding.mismatches(self._model, found, sample)):
            found = f"{number} of {len(sample)} texts of the corpus have other ids"
        why = found if isinstance(found, str) else ""
        self._bulk = None if isinstance(found, str) else found
        self._encoder = "huggingface" if why else "tiktoken"
        return {"encoder": self._encoder, "texts_compared": len(tiktoken_encoding.NASTY) + len(sample), "why": why}

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n], no special ids. The result does not depend on what else is in the batch. Raises
        UnicodeEncodeError for a lone surrogate: it is no character of any text."""
        for text in texts:
            if not text.isascii():
                text.encode()
        parts = [pieces(text) for text in texts]
        encoded = iter(self._encode_pieces([piece for text_parts in parts for piece in text_parts]))
        return [next(encoded) if len(p) == 1 else np.concatenate([next(encoded) for _ in p]) for p in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i < self.bos_id], skip_special_tokens=False)

    def token_bytes(self, token: int) -> int:
        """How many bytes of text a token stands for (0 for BOS and EOS)."""
        return 0 if token >= self.bos_id else len(self._model.id_to_token(token))

    def _encode_pieces(self, texts: list[str]) -> list[np.ndarray]:
        if not self._encoder and sum(map(len, texts)) < FEW_CHARS:  # a prompt is not worth the self-test; the ids are the same
            return self._encode_with_codec(texts)
        if self.encoder == "tiktoken":
            assert self._bulk is not None
            return self._bulk.encode_batch(texts)
        return self._encode_with_codec(texts)

    def _encode_with_codec(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(e.ids, dtype=np.int32) for e in self._model.encode_batch_fast(texts, add_special_tokens=False)]


class BpeTrainer:
    """Learns merges from at most `sample_chars` of the documents, spread evenly, each cut at `max_document_chars`."""

    def __init__(self, config: BpeConfig) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> BpeTokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        config = self._config
        learn = _train_rustbpe if config.trainer == "rustbpe" else _train_huggingface
        model = watched(lambda state: learn(config, sample(texts, config.sample_chars, config.max_document_chars, state)), progress)
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


def watched(work: Callable[[list[float]], Any], progress: ProgressFn) -> Any:
    """The result of `work`, done in a thread, so that this one can report, and be interrupted, while Rust code runs for
    seconds. `work` gets a list to keep up to date: characters taken, characters wanted."""
    state = [0.0, 1.0]
    result: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work(state))
        except BaseException as error:  # raised again below
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name="train tokenizer")
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        progress(state[0], state[1])
    if failure:
        raise failure[0]
    return result[0]


def sample(texts: Callable[[], Iterable[str]], sample_chars: int, max_document_chars: int, state: list[float]) -> Iterator[str]:
    """The texts to learn from: at most `sample_chars` (0: all), spread evenly, each cut at `max_document_chars`, long ones in
    pieces. `state` holds characters taken and characters wanted."""
    total = sum(min(len(text), max_document_chars) for text in texts())
    share = min(1.0, sample_chars / total) if sample_chars and total else 1.0
    state[1] = max(1.0, total * share)
    seen = 0
    for text in texts():
        head = text[:max_document_chars]
        seen += len(head)
        if state[0] <= seen * share:  # every document while all of it fits, else evenly spread ones
            state[0] += len(head)
            yield from pieces(head)


def _train_huggingface(config: BpeConfig, texts: Iterator[str]) -> Any:
    from tokenizers import pre_tokenizers, trainers

    model = empty_model(config.digits)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - NUM_SPECIAL,
        min_frequency=config.min_frequency,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return model


def _train_rustbpe(config: BpeConfig, texts: Iterator[str]) -> Any:
    try:
        import rustbpe
    except ImportError as error:
        raise DataError("tokenizer.tokenizer.trainer rustbpe needs the package rustbpe; pip install 'feeb[rustbpe]', or use trainer huggingface") from error
    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(texts, config.vocab_size - NUM_SPECIAL, 256, pattern(config.digits))
    return from_ranks({bytes(token): rank for token, rank in learner.get_mergeable_ranks()}, config.digits)


def from_ranks(ranks: dict[bytes, int], digits: str) -> Any:
    """The codec whose merges are those that made `ranks` (bytes of a token -> id, in order of merging)."""
    from tokenizers import models

    spell = tiktoken_encoding.byte_characters()
    name = {token: "".join(spell[byte] for byte in token) for token in ranks}
    pairs = (_parents(token, rank, ranks) for token, rank in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1)
    merges = [(name[left], name[right]) for left, right in pairs]
    return empty_model(digits, models.BPE(vocab={name[token]: rank for token, rank in ranks.items()}, merges=merges))


def _parents(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge made `token`: what BPE with the earlier merges leaves of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        earlier, i = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        assert earlier < rank, f"{token!r} is no merge of earlier tokens"
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def empty_model(digits: str, model: Any = None) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    found = Tokenizer(model or models.BPE())
    split = pre_tokenizers.Split(Regex(pattern(digits)), "isolated")
    found.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    found.decoder = decoders.ByteLevel()
    return found


def build(config: BpeConfig) -> BpeTrainer:
    return BpeTrainer(config)
