"""Filter `quality_statistics`: statistics of documents, and thresholds on them."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class QualityConfig(feeb.PartConfig):
    """Thresholds; a document outside any of them is dropped. null: only recorded."""

    min_alpha_ratio: float | None = Field(None, ge=0, le=1, description="letters per character")
    max_mean_line_length: float | None = Field(None, gt=0, description="characters")
    max_line_length: int | None = Field(None, gt=0, description="characters of the longest line")
    max_repeated_lines: float | None = Field(None, ge=0, le=1, description="fraction of non-blank lines that are duplicates of earlier lines")


PART = feeb.FilterSpec(
    "quality_statistics",
    QualityConfig,
    build=f"{__name__}.quality_statistics:quality_statistics",
    summary="Records letter ratio, line lengths and repetition; thresholds drop outliers.",
    reference="arXiv:2112.11446",
)
