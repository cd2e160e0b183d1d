"""Tokenizer `unigram`: a unigram language model over pieces."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb


class UnigramConfig(feeb.PartConfig):
    """Unigram language model over pieces of bytes."""

    vocab_size: int = Field(4096, ge=259, le=2**20, description="all ids, BOS and EOS included")
    digits: Literal["single", "group"] = Field("single", description="'single': each digit a token; 'group': up to three may join")
    max_piece: int = Field(16, ge=1, le=64, description="bytes of the longest piece")
    sample_chars: int = Field(50_000_000, ge=0, description="characters to train on, spread over the documents; 0: all")
    max_document_chars: int = Field(1_000_000, ge=1, description="most characters of one document to train on")


PART = feeb.TokenizerSpec(
    "unigram",
    UnigramConfig,
    build=f"{__name__}.unigram:UnigramTrainer",
    summary="Unigram language-model tokenizer, as in SentencePiece, on bytes.",
    reference="arXiv:1804.10959",
    since="1.1",
)
