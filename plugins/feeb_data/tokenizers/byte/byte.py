"""UTF-8 bytes as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from feebcore.config import NoOptions
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer


class ByteTokenizer(Tokenizer):
    """Ids 0..255 are the bytes of the UTF-8 text, 256 is BOS, 257 EOS. Round trip holds for any text."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, uint8 [n]."""
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class ByteTrainer(TokenizerTrainer):
    """Nothing is learned; the folder holds no file of its own."""

    def __init__(self, config: NoOptions, context: BuildContext | None = None) -> None:
        pass

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> ByteTokenizer:
        return ByteTokenizer()

    def load(self, folder: Path) -> ByteTokenizer:
        return ByteTokenizer()
