"""Tokenizer `bpe`: byte-level byte-pair encoding."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

import feebcore as feeb


class BpeConfig(feeb.PartConfig):
    """Byte-level BPE."""

    vocab_size: int = Field(4096, ge=258, le=2**24, description="all ids, BOS and EOS included")
    digits: Literal["single", "group"] = Field("single", description="'single': each digit a token; 'group': up to three may join")
    min_frequency: int = Field(2, ge=1, description="occurrences from which a pair is merged")
    sample_chars: int = Field(200_000_000, ge=0, description="characters to train on, spread over the documents; 0: all")
    max_document_chars: int = Field(1_000_000, ge=1, description="most characters of one document to train on")
    trainer: Literal["huggingface", "rustbpe"] = Field("huggingface", description="library that trains; rustbpe is faster and merges pairs however rare")

    @model_validator(mode="after")
    def _rustbpe_counts_no_minimum(self) -> BpeConfig:
        if self.trainer == "rustbpe" and self.min_frequency != 1:
            if "min_frequency" in self.model_fields_set:
                raise ValueError(f"min_frequency {self.min_frequency} needs trainer huggingface: rustbpe merges pairs however rare; leave the key out")
            object.__setattr__(self, "min_frequency", 1)
        return self


PART = feeb.TokenizerSpec(
    "bpe", BpeConfig, build=f"{__name__}.bpe:BpeTrainer", summary="Byte-level byte-pair encoding.", reference="arXiv:1508.07909", revision=2
)
