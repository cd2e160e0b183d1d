"""Byte-level BPE through tiktoken: the ids of Hugging Face's codec at several times its speed, or not at all.

A trained byte-level BPE has one way to make each token, and its ids are in the order of its merges. tiktoken's rule
(merge the neighbors whose union has the lowest id) then gives the same ids as the list of merges. What could differ is
how the two libraries read the pretoken expression and which Unicode tables they carry, so nothing is taken on trust:
`open_encoding` compares classes of characters, pretokens and ids on texts chosen to be nasty, and `mismatches` on whatever texts a caller has.

tiktoken is told of no special token, so none can be parsed out of text. It works without the interpreter's lock: threads help.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

MAX_THREADS = 16
GROUP_CHARS = 32 * 1024  # a thread's unit of work: small texts go together
CLASSES = (r"\p{L}+", r"\p{N}+", r"\s+", r"(?i:[sdmt]|ll|ve|re)+")
CODE_POINT_STEP = 37  # blocks of letters are larger: every one is met

NASTY = (
    "",
    " ",
    "\n",
    "\r\n\r\n  \n\t x\n",
    "a  b   c    \n  d",
    "don't DON'T don'T 'S 'LL 'll'Ve 're'd'M ' ''s it\u2019s '\u017f '\ufb06 l'\u00e9t\u00e9",
    "'SX 'sx 'LLx 'llx 'Rea 'VEst 'table 'Dx",
    "1234567890 3.14e-10 0x1F \u0661\u0662\u0663 \u216b\u00bd 1\u0301",
    "<|endoftext|><|im_start|>user<s></s>[BOS]<bos><unk><0x0A>\u2581\u0120",
    "caf\u00e9 cafe\u0301 na\u00efve \u0130I\u0131i \u00dfSS \ufb00 \u01c5",
    "\u6771\u4eac\u90fd \u043f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \uac00\u1100\u1161 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x85\xa0\xad",
    "\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000 \u180e\u200b\u200c\u200d\u2060\ufeff x",
    "\ufffd\ufffe\uffff\U0010ffff\ue000\U000e0041\ufe0f",
    "_under__score_ a_b1_c2 __init__ ___",
    "https://example.org/a?b=c&d=%20#e \\n \\u0041 ```py\n```\t\t\t",
    "x" * 700,
    " " * 700 + "y",
    "\n" * 700,
    "ab" * 700,
    "=" * 700 + "\r\n",
    "1" * 700,
    "\u6771" * 700,
)


class BulkEncoding:
    """Texts to ids with tiktoken. Texts must be free of lone surrogates."""

    def __init__(self, ranks: dict[bytes, int], pattern: str) -> None:
        import tiktoken

        self._encoding = tiktoken.Encoding("feeb", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._pool: ThreadPoolExecutor | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Per text its ids, int32 [n]; over all cores this process may use, or one when TOKENIZERS_PARALLELISM is off."""
        threads = num_threads()
        if threads == 1 or sum(map(len, texts)) < 2 * GROUP_CHARS:
            return self._encode(texts)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encode")
        return list(itertools.chain.from_iterable(self._pool.map(self._encode, _groups(texts))))

    def _encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self._encoding.encode_ordinary(text), dtype=np.int32) for text in texts]


def open_encoding(model: Any, pattern: str) -> BulkEncoding | str:
    """tiktoken's encoding of a byte-level BPE `model` (a tokenizers.Tokenizer), or why it cannot stand for it."""
    if different := different_classes():
        return f"the libraries' Unicode tables differ at {different}"
    if different := different_pretokens(model, pattern):
        return f"tiktoken cuts {different!r} into other pretokens"
    encoding = BulkEncoding(ranks_of(model), pattern)
    if found := mismatches(model, encoding, NASTY):
        return f"{found} of {len(NASTY)} texts of the self-test have other ids"
    return encoding


def mismatches(model: Any, encoding: BulkEncoding, texts: Sequence[str]) -> int:
    """How many of `texts` get other ids from `encoding` than from `model`."""
    expected = model.encode_batch_fast(list(texts), add_special_tokens=False)
    return sum(e.ids != ids.tolist() for e, ids in zip(expected, encoding.encode_batch(texts), strict=True))


def different_pretokens(model: Any, pattern: str) -> str:
    """The first of NASTY that tiktoken cuts into other pretokens than `model`, '' when there is none.

    Ids alone would not tell when nothing was learned of the place. So tiktoken gets a vocabulary in which each of the model's
    pretokens is one token, and each two that touch are another: what it cut elsewhere cannot come out as the pretokens.
    """
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    cut = [[bytes(byte_of[c] for c in piece) for piece, _ in model.pre_tokenizer.pre_tokenize_str(text)] for text in NASTY]
    single_bytes = [bytes([i]) for i in range(256)]
    touching = {left + right for pieces in cut for left, right in itertools.pairwise(pieces)}
    longer = touching | {piece for pieces in cut for piece in pieces if len(piece) > 1}
    ranks = {token: i for i, token in enumerate([*single_bytes, *sorted(longer)])}
    found = BulkEncoding(ranks, pattern).encode_batch(NASTY)
    return next((text for text, ids, pieces in zip(NASTY, found, cut, strict=True) if ids.tolist() != [ranks[piece] for piece in pieces]), "")


def ranks_of(model: Any) -> dict[bytes, int]:
    """Bytes of each token -> id. Byte-level models spell a byte as one printable character."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    return {bytes(byte_of[c] for c in token): i for token, i in model.get_vocab(with_added_tokens=False).items()}


@functools.cache
def byte_characters() -> tuple[str, ...]:
    """How byte-level models spell bytes 0..255: printable Latin-1 as itself, the others from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(0x100)
    return tuple(chr(byte) if byte in printable else chr(next(others)) for byte in range(256))


@functools.cache
def different_classes(step: int = CODE_POINT_STEP) -> str:
    """The first of CLASSES, with a code point, that the two libraries read differently; '' when they agree on every
    `step`-th code point. step 1 looks at all of them (16 s)."""
    import tiktoken
    from tokenizers import Regex, pre_tokenizers

    text = "".join(chr(i) for i in itertools.chain(range(0x250), range(0x250, 0x110000, step)) if not 0xD800 <= i < 0xE000)
    single_bytes = {bytes([i]): i for i in range(256)}
    for expression in CLASSES:
        found = tiktoken.Encoding("class", pat_str=expression, mergeable_ranks=single_bytes, special_tokens={}).encode_ordinary(text)
        removed = pre_tokenizers.Split(Regex(expression), "removed").pre_tokenize_str(text)
        if different := set(bytes(found).decode()) ^ (set(text) - set("".join(piece for piece, _ in removed))):
            return f"U+{ord(min(different)):04X} for {expression}"
    return ""


def num_threads() -> int:
    """Threads to encode with: cores this process may use, one when TOKENIZERS_PARALLELISM is off."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "true").lower() in ("false", "0", "off", "no", "n", "f"):
        return 1
    return min(MAX_THREADS, len(os.sched_getaffinity(0)))


def _groups(texts: Sequence[str]) -> list[Sequence[str]]:
    """Runs of neighbors of about GROUP_CHARS characters each."""
    groups, begin, size = [], 0, 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= GROUP_CHARS or end == len(texts):
            groups.append(texts[begin:end])
            begin, size = end, 0
    return groups
