"""Letter ratio, line lengths and repetition of documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from feebcore.protocols import BuildContext, Filter

if TYPE_CHECKING:
    from feeb_data.filters.quality_statistics import QualityConfig


def quality_statistics(config: QualityConfig, context: BuildContext | None = None) -> Filter:
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
