"""What byte-level tokenizers share: the pretoken expression, and Hugging Face's spelling of bytes."""

from __future__ import annotations

import functools
import itertools
from typing import Any

NUM_SPECIAL = 2
"""BOS and EOS, appended after the learned vocabulary and not known to the codec: `<|endoftext|>` in a document stays text."""

DIGITS = {"single": "", "group": "{1,3}"}


def pattern(digits: str) -> str:
    """The pretoken expression. digits: 'single' makes each digit a pretoken, 'group' up to three."""
    digit = r"\p{N}" + DIGITS[digits]
    return rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digit}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def empty_model(digits: str, model: Any = None) -> Any:
    """A byte-level tokenizers.Tokenizer around `model`, an empty BPE by default."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(model or models.BPE())
    split = pre_tokenizers.Split(Regex(pattern(digits)), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """How byte-level models spell bytes 0..255: printable Latin-1 as itself, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))
