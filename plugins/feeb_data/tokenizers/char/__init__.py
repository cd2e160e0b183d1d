"""Tokenizer `char`: an id per character."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class CharConfig(feeb.PartConfig):
    """Which characters get an id; others are encoded as bytes."""

    min_frequency: int = Field(1, ge=1, description="occurrences from which a character gets an id")
    max_characters: int = Field(4096, ge=1, description="most characters with an id, the most frequent ones")


PART = feeb.TokenizerSpec(
    "char", CharConfig, build=f"{__name__}.char:CharTrainer", summary="Character-level tokenizer with byte fallback for unknown characters."
)
