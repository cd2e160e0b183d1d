"""Real text of this machine for benchmarks: sources, docs and pages that lie under a few system folders.

A corpus larger than what is found repeats it, each time with other words in place of some (so that the number of distinct
words keeps growing, as it does in real corpora).
"""

from __future__ import annotations

import random
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FOLDERS = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"], sys.prefix, "/usr/share", "/usr/lib")
SUFFIXES = (".py", ".md", ".rst", ".txt", ".html")
MAX_FILE = 500_000  # bytes: beyond it lie tables and generated code
LONG_WORD = re.compile(r"[a-z]{7,}")


def documents(num_bytes: int, seed: int = 0) -> Iterator[str]:
    """Texts, one a file, in a random order, of `num_bytes` in all, as UTF-8."""
    found = sorted({path for folder in FOLDERS for path in Path(folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()})
    order = random.Random(seed)
    order.shuffle(found)
    left, turn = num_bytes, 0
    while left > 0:
        for path in found:
            try:
                text = path.read_text() if 0 < path.stat().st_size <= MAX_FILE else ""
            except (OSError, UnicodeDecodeError):
                continue
            if not text.strip():
                continue
            if turn:
                text = other_words(text, turn)
            left -= len(text.encode())
            yield text
            if left <= 0:
                return
        turn += 1


def other_words(text: str, turn: int) -> str:
    """A quarter of the long words with their letters turned, the same ones in every process."""

    def changed(match: re.Match[str]) -> str:
        word, by = match[0], 1 + turn % 6
        return word if (sum(word.encode()) * 31 + len(word) * 7 + turn) % 4 else word[by:] + word[:by]

    return LONG_WORD.sub(changed, text)
