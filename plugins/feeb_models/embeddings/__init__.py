"""Tokens to vectors: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import Field, field_validator

from feebcore import PartConfig
from feebcore.specs import EmbeddingSpec


class ScaledConfig(PartConfig):
    scale: float | None = Field(None, gt=0, description="default: sqrt(d_model)")


class FactorizedConfig(PartConfig):
    rank: int = Field(128, ge=1, description="width of the table; below d_model it saves parameters")


class HashNgramsConfig(PartConfig):
    example: ClassVar[dict[str, Any]] = {"buckets": 500}

    sizes: tuple[int, ...] = Field((3, 4, 5, 6, 7, 8), min_length=1, description="lengths n of the n-grams, each with a table of its own")
    buckets: int = Field(50_000, ge=1, description="rows of each table; the paper takes 500,000")

    @field_validator("sizes")
    @classmethod
    def _sizes_are_lengths(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if min(sizes) < 2 or len(set(sizes)) < len(sizes):
            raise ValueError(f"sizes are lengths of n-grams, each 2 or more and given once, not {list(sizes)}; one token alone has the main table")
        return tuple(sorted(sizes))


def specs() -> Iterable[EmbeddingSpec]:
    yield EmbeddingSpec("standard", build="feeb_models.embeddings.standard:build_standard", summary="One vector a token.", equation="r_t = E[token_t]")
    yield EmbeddingSpec(
        "scaled",
        ScaledConfig,
        build="feeb_models.embeddings.tables:build_scaled",
        summary="One vector a token, times sqrt(d_model).",
        reference="arXiv:1706.03762",
        since="1.1",
        equation="r_t = s E[token_t],   s = √C unless scale is given",
    )
    yield EmbeddingSpec(
        "normed",
        build="feeb_models.embeddings.tables:build_normed",
        summary="One vector a token, normed before the first block.",
        reference="https://github.com/karpathy/nanochat",
        since="1.1",
        equation="r_t = norm(E[token_t])",
    )
    yield EmbeddingSpec(
        "factorized",
        FactorizedConfig,
        build="feeb_models.embeddings.tables:build_factorized",
        summary="A narrow vector a token, widened by a matrix; head factorized can share the table.",
        reference="arXiv:1909.11942",
        since="1.1",
        equation="r_t = W E[token_t]      E [V, rank], W [C, rank]",
    )
    yield EmbeddingSpec(
        "hash_ngrams",
        HashNgramsConfig,
        build="feeb_models.embeddings.ngrams:build_hash_ngrams",
        summary="A vector a token plus hashed vectors of the n-grams that end at it, meant for bytes.",
        reference="arXiv:2412.09871",
        since="1.1",
        equation="r_t = (E[token_t] + Σ_{n in sizes} G_n[hash(token_{t−n+1} … token_t) mod buckets]) / (1 + number of sizes)",
    )
