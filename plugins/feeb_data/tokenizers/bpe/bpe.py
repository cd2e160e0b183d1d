"""Byte-level byte-pair encoding: trained by Hugging Face tokenizers or rustbpe, encoded by tiktoken.

Text is cut into pretokens by a fixed expression (GPT-4's, digits single by default); merges never cross them. A vocabulary is
the 256 bytes and, in order of merging, the tokens that were merged: the 256 bytes are always there, so any text round-trips.
`tokenizer.json` spells it in Hugging Face's format, with the merges that the order of the tokens implies.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feeb_data.tokenizers.bpe.tiktoken_encoding import TiktokenEncoding
from feeb_data.tokenizers.byte_level import NUM_SPECIAL, byte_characters, empty_model, pattern
from feeb_data.tokenizers.text_pieces import pieces
from feeb_data.tokenizers.training import sample, watched
from feebcore.errors import DataError
from feebcore.files import write_atomic
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer

if TYPE_CHECKING:
    from feeb_data.tokenizers.bpe import BpeConfig

Ranks = dict[bytes, int]
"""Bytes of each token -> id, in order of merging."""


class BpeTokenizer(Tokenizer):
    """Codec over `ranks`. vocab_size counts BOS (vocab_size - 2) and EOS (vocab_size - 1)."""

    encodes_in_threads = True

    def __init__(self, ranks: Ranks, digits: str) -> None:
        self.ranks, self.digits = ranks, digits
        self.vocab_size = len(ranks) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1
        self._lengths = {rank: len(token) for token, rank in ranks.items()}
        self._encoding = TiktokenEncoding(ranks, pattern(digits))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n], no special ids. The result does not depend on what else is in the batch. Raises
        UnicodeEncodeError for a lone surrogate: it is no character of any text."""
        for text in texts:
            if not text.isascii():
                text.encode()
        parts = [pieces(text) for text in texts]
        encoded = iter(self._encoding.encode_batch([piece for text_parts in parts for piece in text_parts]))
        return [next(encoded) if len(p) == 1 else np.concatenate([next(encoded) for _ in p]) for p in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._encoding.decode_bytes([int(i) for i in ids if i < self.bos_id]).decode(errors="replace")

    def token_bytes(self, token: int) -> int:
        """Number of bytes of text that a token stands for (0 for BOS and EOS)."""
        return self._lengths.get(token, 0)


class BpeTrainer(TokenizerTrainer):
    """Learns merges from at most `sample_chars` of the documents, spread evenly, each cut at `max_document_chars`."""

    def __init__(self, config: BpeConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> BpeTokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        config = self._config
        learn = _train_rustbpe if config.trainer == "rustbpe" else _train_huggingface
        ranks: Ranks = watched(lambda state: learn(config, sample(texts, config.sample_chars, config.max_document_chars, state)), progress)
        reached = len(ranks) + NUM_SPECIAL
        if reached < config.vocab_size:
            raise DataError(
                f"the corpus supports a vocabulary of {reached}, not {config.vocab_size}: no pair of tokens is left that occurs "
                f"{config.min_frequency} times; set tokenizer.tokenizer.vocab_size to at most {reached}, or add text"
            )
        write_atomic(folder / "tokenizer.json", to_huggingface(ranks, config.digits))
        return BpeTokenizer(ranks, config.digits)

    def load(self, folder: Path) -> BpeTokenizer:
        path = folder / "tokenizer.json"
        try:
            return BpeTokenizer(ranks_of(json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]), self._config.digits)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a tokenizer ({type(error).__name__}: {error}); run the tokenizer stage again") from error


def ranks_of(vocab: dict[str, int]) -> Ranks:
    """The vocabulary of a byte-level model, which spells each byte as one printable character."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    return {bytes(byte_of[c] for c in token): i for token, i in vocab.items()}


def to_huggingface(ranks: Ranks, digits: str) -> str:
    """`tokenizer.json` of Hugging Face tokenizers, with the merges that made `ranks`."""
    from tokenizers import models

    spelling = byte_characters()
    name = {token: "".join(spelling[byte] for byte in token) for token in ranks}
    pairs = (_parents(token, rank, ranks) for token, rank in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1)
    merges = [(name[left], name[right]) for left, right in pairs]
    return empty_model(digits, models.BPE(vocab={name[token]: rank for token, rank in ranks.items()}, merges=merges)).to_str(pretty=True)


def _parents(token: bytes, rank: int, ranks: Ranks) -> tuple[bytes, bytes]:
    """The two tokens whose merge made `token`: what BPE with the earlier merges leaves of its bytes."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        earlier, i = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
        assert earlier < rank, f"{token!r} is not a merge of earlier tokens"
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _train_huggingface(config: BpeConfig, texts: Iterator[str]) -> Ranks:
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
    return ranks_of(model.get_vocab(with_added_tokens=False))


def _train_rustbpe(config: BpeConfig, texts: Iterator[str]) -> Ranks:
    try:
        import rustbpe
    except ImportError as error:
        raise DataError("tokenizer.tokenizer.trainer rustbpe needs the package rustbpe; pip install 'feeb[rustbpe]', or use trainer huggingface") from error
    learner = rustbpe.Tokenizer()
    learner.train_from_iterator(texts, config.vocab_size - NUM_SPECIAL, 256, pattern(config.digits))
    return {bytes(token): rank for token, rank in learner.get_mergeable_ranks()}
