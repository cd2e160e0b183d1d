"""The first batch as text."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class FirstBatchConfig(PartConfig):
    sequences: int = Field(2, ge=1, description="number of sequences to write out")


PART = feeb.CallbackSpec(
    "first_batch",
    FirstBatchConfig,
    build=f"{__name__}.first_batch:FirstBatch",
    since="1.1",
    summary="The first batch as text, inputs next to targets.",
    reference="https://karpathy.github.io/2019/04/25/recipe/",
)
