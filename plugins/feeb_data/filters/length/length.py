"""Bounds on the size of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from feebcore.protocols import BuildContext, Filter

if TYPE_CHECKING:
    from feeb_data.filters.length import LengthConfig


def length(config: LengthConfig, context: BuildContext | None = None) -> Filter:
    """Keeps documents whose size lies within all the bounds given."""
    num_chars = pl.col("text").str.len_chars()
    keep = (pl.col("num_bytes") >= config.min_bytes) & (num_chars >= config.min_chars)
    if config.max_bytes is not None:
        keep &= pl.col("num_bytes") <= config.max_bytes
    if config.max_chars is not None:
        keep &= num_chars <= config.max_chars
    return lambda frame: frame.filter(keep)
