"""Filter `dedup_exact`: removes duplicate texts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb


class DedupExactConfig(feeb.PartConfig):
    """What counts as the same text."""

    normalize: Literal["none", "whitespace", "lower"] = Field("whitespace", description="'whitespace' folds runs of it; 'lower' also folds case")


PART = feeb.FilterSpec("dedup_exact", DedupExactConfig, build=f"{__name__}.dedup_exact:dedup_exact", summary="Keeps the first of equal texts.")
