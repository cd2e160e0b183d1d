"""Tokenizer `trie`: greedy longest match."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class TrieConfig(feeb.PartConfig):
    """Pieces for greedy longest match."""

    vocab_size: int = Field(4096, ge=258, le=2**20, description="all ids, bytes, characters, BOS and EOS included")
    max_piece: int = Field(16, ge=2, le=64, description="characters of the longest piece")
    min_frequency: int = Field(2, ge=1, description="occurrences from which a piece is used")
    sample_chars: int = Field(50_000_000, ge=0, description="characters to train on, from the first document on; 0: all")


PART = feeb.TokenizerSpec(
    "trie",
    TrieConfig,
    build=f"{__name__}.trie:TrieTrainer",
    summary="WordPiece-style tokenizer: greedy longest-match-first (MaxMatch) over a frequency-based vocabulary, with byte fallback.",
    reference="arXiv:2012.15524",
    since="1.1",
)
