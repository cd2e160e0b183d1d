"""The first document of each normalized text."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import polars as pl

from feebcore.protocols import BuildContext, Filter

if TYPE_CHECKING:
    from feeb_data.filters.dedup_exact import DedupExactConfig


def dedup_exact(config: DedupExactConfig, context: BuildContext | None = None) -> Filter:
    """Keeps the first document of each normalized text, compared by SHA-256."""
    text = pl.col("text")
    if config.normalize != "none":
        text = text.str.replace_all(r"\s+", " ").str.strip_chars()
    if config.normalize == "lower":
        text = text.str.to_lowercase()

    def apply(frame: pl.LazyFrame) -> pl.LazyFrame:
        digests = text.map_batches(_sha256, return_dtype=pl.Binary)
        return frame.with_columns(_digest=digests).unique("_digest", keep="first", maintain_order=True).drop("_digest")

    return apply


def _sha256(texts: pl.Series) -> pl.Series:
    return pl.Series([hashlib.sha256(text.encode()).digest() for text in texts], dtype=pl.Binary)
