"""Filters `length`, `dedup_exact` and `quality_statistics`: polars LazyFrame to LazyFrame on columns text, source, key,
num_bytes. Rows keep their order; numeric columns that a filter adds are summarized in statistics.json."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from feeb_data import DedupExactConfig, LengthConfig, QualityConfig

Filter = Callable[[pl.LazyFrame], pl.LazyFrame]


def build_length(config: LengthConfig) -> Filter:
    """Keeps documents whose size lies within all the bounds given."""
    num_chars = pl.col("text").str.len_chars()
    keep = (pl.col("num_bytes") >= config.min_bytes) & (num_chars >= config.min_chars)
    if config.max_bytes is not None:
        keep &= pl.col("num_bytes") <= config.max_bytes
    if config.max_chars is not None:
        keep &= num_chars <= config.max_chars
    return lambda frame: frame.filter(keep)


def build_dedup_exact(config: DedupExactConfig) -> Filter:
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


def build_quality_statistics(config: QualityConfig) -> Filter:
    """Adds alpha_ratio, mean_line_length, max_line_length and repeated_lines, and drops what a threshold excludes."""

    def apply(frame: pl.LazyFrame) -> pl.LazyFrame:
        text = pl.col("text")
        lines = text.str.split("\n")
        lengths = lines.list.eval(pl.element().str.len_chars())
        filled = lines.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
        frame = frame.with_columns(
            alpha_ratio=text.str.count_matches(r"\p{L}") / pl.max_horizontal(text.str.len_chars(), pl.lit(1)),
            mean_line_length=lengths.list.mean(),
            max_line_length=lengths.list.max(),
            repeated_lines=pl.when(filled.list.len() > 0).then(1.0 - filled.list.n_unique() / filled.list.len()).otherwise(0.0),
        )
        keep = pl.lit(True)
        if config.min_alpha_ratio is not None:
            keep &= pl.col("alpha_ratio") >= config.min_alpha_ratio
        if config.max_mean_line_length is not None:
            keep &= pl.col("mean_line_length") <= config.max_mean_line_length
        if config.max_line_length is not None:
            keep &= pl.col("max_line_length") <= config.max_line_length
        if config.max_repeated_lines is not None:
            keep &= pl.col("repeated_lines") <= config.max_repeated_lines
        return frame.filter(keep)

    return apply


def _sha256(texts: pl.Series) -> pl.Series:
    return pl.Series([hashlib.sha256(text.encode()).digest() for text in texts], dtype=pl.Binary)
