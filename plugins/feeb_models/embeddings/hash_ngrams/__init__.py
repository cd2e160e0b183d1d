"""Hashed n-gram embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, field_validator

import feebcore as feeb


class HashNgramsConfig(feeb.PartConfig):
    example: ClassVar[dict[str, Any]] = {"buckets": 500}

    sizes: tuple[int, ...] = Field((3, 4, 5, 6, 7, 8), min_length=1, description="lengths n of the n-grams, each with a separate table")
    buckets: int = Field(50_000, ge=1, description="rows per table; the paper takes 500,000")

    @field_validator("sizes")
    @classmethod
    def _sizes_are_lengths(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 2 or len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes are lengths of n-grams, each 2 or more and given once, not {list(sizes)}; one token alone has the main table")
        return tuple(sorted(sizes))


PART = feeb.EmbeddingSpec(
    "hash_ngrams",
    HashNgramsConfig,
    build=f"{__name__}.hash_ngrams:HashNgrams",
    summary="Token embedding plus hashed embeddings of the n-grams that end at the token; meant for bytes.",
    reference="arXiv:2412.09871",
    since="1.1",
    equation="r_t = (E[token_t] + Σ_{n in sizes} G_n[hash(token_{t−n+1} … token_t) mod buckets]) / (1 + number of sizes)",
)
