"""Task `sort`: digits in ascending order."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class SortConfig(feeb.PartConfig):
    """Size of the problems."""

    digits: int = Field(5, ge=2, le=32, description="number of digits to sort")


PART = feeb.TaskSpec("sort", SortConfig, build=f"{__name__}.sort:Sort", summary="Digits in ascending order: 72914= becomes 12479.")
