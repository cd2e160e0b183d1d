"""A probability for every piece, and the most probable way to cut a text into pieces.

Kudo 2018 (arXiv:1804.10959), trained by Hugging Face tokenizers: from all frequent substrings, expectation maximization
drops the least useful ones until the vocabulary has the requested size; encoding is Viterbi's algorithm. Text is cut into the
same pretokens as for `bpe` and spelt in bytes: the 256 bytes are always in the vocabulary, so any text round-trips and
nothing is ever unknown. Long texts are encoded in pieces, as with `bpe`.

Training is single-threaded: the library adds its expectations in the order its threads finish, and sums of floats then differ.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feeb_data.tokenizers.byte_level import NUM_SPECIAL, empty_model
from feeb_data.tokenizers.text_pieces import pieces
from feeb_data.tokenizers.training import sample, watched
from feebcore.errors import DataError
from feebcore.files import write_atomic
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer

if TYPE_CHECKING:
    from feeb_data.tokenizers.unigram import UnigramConfig

BYTE_STEPS = 256 * 0.0001  # the library gives a byte that no text holds the lowest score plus up to so much


class UnigramTokenizer(Tokenizer):
    """Codec over a trained model. vocab_size counts BOS (vocab_size - 2) and EOS (vocab_size - 1)."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.vocab_size = model.get_vocab_size(with_added_tokens=False) + NUM_SPECIAL
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n]. Raises UnicodeEncodeError for a lone surrogate."""
        for text in texts:
            if not text.isascii():
                text.encode()
        parts = [pieces(text) for text in texts]
        encoded = iter(self._model.encode_batch_fast([piece for text_parts in parts for piece in text_parts], add_special_tokens=False))
        return [np.concatenate([np.array(next(encoded).ids, dtype=np.int32) for _ in text_parts]) for text_parts in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i < self.bos_id], skip_special_tokens=False)

    def token_bytes(self, token: int) -> int:
        """How many bytes of text a token stands for (0 for BOS and EOS)."""
        return 0 if token >= self.bos_id else len(self._model.id_to_token(token))


class UnigramTrainer(TokenizerTrainer):
    """Learns pieces from at most `sample_chars` of the documents, spread evenly."""

    def __init__(self, config: UnigramConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> UnigramTokenizer:
        config = self._config
        with _one_thread():
            model = watched(lambda state: _train(config, sample(texts, config.sample_chars, config.max_document_chars, state)), progress)
        reached = model.get_vocab_size(with_added_tokens=False) + NUM_SPECIAL
        if reached != config.vocab_size:
            raise DataError(
                f"the corpus supports a vocabulary of {reached}, not {config.vocab_size}: it has too few substrings that repeat; "
                f"set tokenizer.tokenizer.vocab_size to at most {reached}, or add text"
            )
        write_atomic(folder / "tokenizer.json", model.to_str(pretty=True))
        return UnigramTokenizer(model)

    def load(self, folder: Path) -> UnigramTokenizer:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        import tokenizers

        path = folder / "tokenizer.json"
        try:
            return UnigramTokenizer(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the Rust library raises bare Exception
            raise DataError(f"{path} is not a tokenizer ({error}); run the tokenizer stage again") from error


def _train(config: UnigramConfig, texts: Iterator[str]) -> Any:
    from tokenizers import models, pre_tokenizers, trainers

    model = empty_model(config.digits, models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=config.vocab_size - NUM_SPECIAL,
        special_tokens=[],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_piece_length=config.max_piece,
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    return empty_model(config.digits, models.Unigram(_settled(json.loads(model.to_str())["model"]["vocab"])))


def _settled(vocab: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """The learned pieces with what the library leaves to the order of its hash maps taken out: the last digits of the
    scores, the order of equal ones, and the small steps by which it spreads the scores of bytes the corpus lacks."""
    floor = min(score for _, score in vocab)
    settled = [(piece, round(floor if len(piece) == 1 and score < floor + BYTE_STEPS else score, 6)) for piece, score in vocab]
    return sorted(settled, key=lambda item: (-item[1], item[0]))


@contextmanager
def _one_thread() -> Iterator[None]:
    old = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = old or "true"
