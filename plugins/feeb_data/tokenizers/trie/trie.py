"""Greedy longest match over a learned vocabulary of pieces of variable length.

Text is cut into words (letters with the blank before them, digits, punctuation, blanks). Inside a word the longest known
piece that fits is taken, again and again; where none fits, a known character, else the UTF-8 bytes of the next character.
Ids 0..255 are bytes, then characters, then pieces, BOS, EOS. Any text round-trips. There are no merges: what a text becomes
can be read off the list of pieces.

How the pieces are found: words of the sample are counted and the `MAX_WORDS` most frequent kept; every run of two to
`max_piece` characters inside them is a candidate, scored by how many tokens it could save, count x (length - 1). The best
are tried out, four times as many as wanted: the words are encoded with them, and the 1.5 times as many that saved most are
tried out again, so that what only repeats a longer piece goes. Ties are broken by the piece itself: training is deterministic.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feeb_data.tokenizers.text_pieces import pieces as cut
from feeb_data.tokenizers.trie.word_cache import WordCache
from feebcore.errors import DataError
from feebcore.files import read_json, write_json
from feebcore.protocols import BuildContext, ProgressFn, Tokenizer, TokenizerTrainer

if TYPE_CHECKING:
    from feeb_data.tokenizers.trie import TrieConfig

MAX_WORDS = 1 << 16
ROUNDS = (4.0, 1.5, 1.0)  # candidates held in each round, as multiples of the pieces wanted
NUM_SPECIAL = 2
MAX_CHARACTERS = 0.25  # of the vocabulary
MAX_COUNTED = 4_000_000  # distinct words held while counting, about 400 MB; rarer ones go first

WORDS = re.compile(r" ?[^\W\d_]+|\d|_+| ?[^\s\w]+|\s+?(?= \S)|\s+", re.DOTALL)


class TrieTokenizer(Tokenizer):
    """Codec over characters and pieces."""

    def __init__(self, characters: Sequence[str], pieces: Sequence[str]) -> None:
        self._bytes = [bytes([i]) for i in range(256)] + [text.encode() for text in (*characters, *pieces)] + [b"", b""]
        self.vocab_size = len(self._bytes)
        self.bos_id, self.eos_id = self.vocab_size - 2, self.vocab_size - 1
        self._matcher = Matcher(characters, pieces)
        self._cache = WordCache(self._matcher.encode)

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n]. Raises UnicodeEncodeError for a lone surrogate."""
        for text in texts:
            if not text.isascii():
                text.encode()
        parts = [[self._cache.ids(WORDS.findall(part)) for part in cut(text)] for text in texts]
        return [p[0] if len(p) == 1 else np.concatenate(p) for p in parts]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self._bytes[i] for i in ids).decode(errors="replace")

    def token_bytes(self, token: int) -> int:
        """How many bytes of text a token stands for (0 for BOS and EOS)."""
        return len(self._bytes[token])


class Matcher:
    """Greedy longest match in one word."""

    def __init__(self, characters: Sequence[str], pieces: Sequence[str]) -> None:
        self._id = {text: 256 + i for i, text in enumerate((*characters, *pieces))}
        longest: dict[str, int] = {}  # first character -> length of the longest piece that begins with it
        for piece in self._id:
            longest[piece[0]] = max(longest.get(piece[0], 1), len(piece))
        self._longest = longest

    def encode(self, word: str) -> list[int]:
        ids, start = [], 0
        while start < len(word):
            for length in range(min(self._longest.get(word[start], 1), len(word) - start), 0, -1):
                if (token := self._id.get(word[start : start + length])) is not None:
                    ids.append(token)
                    break
            else:
                length = 1
                ids.extend(word[start].encode())
            start += length
        return ids


class TrieTrainer(TokenizerTrainer):
    """Learns from at most `sample_chars` characters of the documents, from the first on."""

    def __init__(self, config: TrieConfig, context: BuildContext | None = None) -> None:
        self._config = config

    def train(self, texts: Callable[[], Iterable[str]], folder: Path, progress: ProgressFn) -> TrieTokenizer:
        config = self._config
        words = _count_words(texts(), config.sample_chars, lambda share: progress(0.5 * share, 1.0))
        if not words:
            raise DataError("the tokenizer has no text to learn from: every training document is empty")
        room = config.vocab_size - 256 - NUM_SPECIAL
        characters = _frequent_characters(words, config.min_frequency, int(room * MAX_CHARACTERS))
        room -= len(characters)
        frequent = dict(sorted(words.items(), key=lambda item: (-item[1], item[0]))[:MAX_WORDS])
        pieces = _candidates(frequent, config.max_piece, config.min_frequency, int(ROUNDS[0] * room))
        for number, share in enumerate(ROUNDS[1:], 1):
            progress(0.5 + 0.2 * number, 1.0)
            pieces = _most_used(frequent, characters, pieces, config.min_frequency)[: int(share * room)]
        if len(pieces) < room:
            reached = config.vocab_size - room + len(pieces)
            raise DataError(
                f"the corpus supports a vocabulary of {reached}, not {config.vocab_size}: no other run of characters occurs {config.min_frequency} times; "
                f"set tokenizer.tokenizer.vocab_size to at most {reached}, or add text"
            )
        write_json(folder / "pieces.json", {"characters": characters, "pieces": pieces})
        return TrieTokenizer(characters, pieces)

    def load(self, folder: Path) -> TrieTokenizer:
        saved = read_json(folder / "pieces.json")
        if not isinstance(saved, dict) or not saved.keys() >= {"characters", "pieces"}:
            raise DataError(f"{folder / 'pieces.json'} is not a list of pieces; run the tokenizer stage again")
        return TrieTokenizer(saved["characters"], saved["pieces"])


def _count_words(texts: Iterable[str], limit: int, tick: Callable[[float], None]) -> Counter[str]:
    words: Counter[str] = Counter()
    seen, floor = 0, 1
    for text in texts:
        if limit and seen >= limit:
            break
        for part in cut(text):
            words.update(WORDS.findall(part))
        seen += len(text)
        while len(words) > MAX_COUNTED:
            floor += 1
            words = Counter({word: n for word, n in words.items() if n >= floor})
        tick(min(1.0, seen / limit) if limit else 0.0)
    return words


def _frequent_characters(words: Counter[str], min_frequency: int, limit: int) -> list[str]:
    """Characters of more than one byte; ASCII ones are bytes already."""
    counts: Counter[str] = Counter()
    for word, n in words.items():
        if not word.isascii():
            for character in word:
                counts[character] += n
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [c for c, n in ranked if n >= min_frequency and not c.isascii()][:limit]


def _candidates(words: dict[str, int], longest: int, min_frequency: int, limit: int) -> list[str]:
    counts: Counter[str] = Counter()
    for word, n in words.items():
        word = word[:256]  # runs of blanks or dashes: longer ones add nothing
        for length in range(2, min(longest, len(word)) + 1):
            for start in range(len(word) - length + 1):
                counts[word[start : start + length]] += n
    frequent = [(n * (len(piece) - 1), piece) for piece, n in counts.items() if n >= min_frequency]
    return [piece for _, piece in sorted(frequent, key=lambda item: (-item[0], item[1]))[:limit]]


def _most_used(words: dict[str, int], characters: Sequence[str], pieces: Sequence[str], min_frequency: int) -> list[str]:
    """`pieces`, those first that save most tokens when greedy matching uses them; unused ones last, as they came."""
    encode = Matcher(characters, pieces).encode
    used = np.zeros(256 + len(characters) + len(pieces), dtype=np.int64)
    for word, n in words.items():
        for i in encode(word):
            used[i] += n
    counts = used[256 + len(characters) :].tolist()
    saved = [-n * (len(piece) - 1) if n >= min_frequency else 0 for n, piece in zip(counts, pieces, strict=True)]
    return [pieces[i] for i in sorted(range(len(pieces)), key=lambda i: (saved[i], pieces[i] if saved[i] else "", i))]
