"""Tokens to vectors: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from feebcore.specs import EmbeddingSpec


def specs() -> Iterable[EmbeddingSpec]:
    yield EmbeddingSpec("standard", build="feeb_models.embeddings.standard:build_standard", summary="One vector a token.")
