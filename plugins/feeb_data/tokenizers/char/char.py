"""Characters as tokens, bytes for the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feebcore.errors import DataError
from feebcore.files import read_json, write_json
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer

if TYPE_CHECKING:
    from feeb_data.tokenizers.char import CharConfig


class CharTokenizer(Tokenizer):
    """Ids 0..255 are bytes, then one id for each known character, BOS, EOS. A character that is not known is encoded
    as its UTF-8 bytes, so round trip holds for any text."""

    def __init__(self, characters: Sequence[str]) -> None:
        self.characters = tuple(characters)
        self.vocab_size = 256 + len(self.characters) + 2
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1
        self._ids = {c: 256 + i for i, c in enumerate(self.characters)}
        codes = np.array([ord(c) for c in self.characters], dtype=np.int64)
        self._table = np.full(int(codes.max()) + 1 if codes.size else 1, -1, dtype=np.int64)
        self._table[codes] = 256 + np.arange(codes.size)
        self._pieces = [bytes([i]) for i in range(256)] + [c.encode() for c in self.characters] + [b"", b""]

    def encode(self, text: str) -> list[int]:
        return self._encode(text).tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int64 [n]."""
        return [self._encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._pieces[i] for i in ids).decode(errors="replace")

    def _encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        ids = self._table[np.minimum(codes, self._table.size - 1)]
        ids[codes >= self._table.size] = -1
        unknown = np.flatnonzero(ids < 0)
        if not unknown.size:
            return ids
        pieces, last = [], 0
        for place in unknown.tolist():
            pieces += [ids[last:place], np.frombuffer(text[place].encode(), dtype=np.uint8).astype(np.int64)]
            last = place + 1
        return np.concatenate([*pieces, ids[last:]])


class CharTrainer(TokenizerTrainer):
    """Takes every character seen at least `min_frequency` times, most frequent first, at most `max_characters`."""

    def __init__(self, config: CharConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> CharTokenizer:
        counts: Counter[str] = Counter()
        for text in texts():
            counts.update(text)
        if not counts:
            raise DataError("the tokenizer has no text to learn from: every training document is empty")
        frequent = [c for c, n in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if n >= self._config.min_frequency]
        characters = frequent[: self._config.max_characters]
        write_json(folder / "characters.json", characters)
        return CharTokenizer(characters)

    def load(self, folder: Path) -> CharTokenizer:
        return CharTokenizer(read_json(folder / "characters.json"))
