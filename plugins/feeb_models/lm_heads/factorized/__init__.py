"""A factorized head."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.lm_heads.options import HeadConfig


class FactorizedHeadConfig(HeadConfig):
    rank: int = Field(128, ge=1, description="width of the space between the two matrices")
    tied: bool = Field(False, description="share the table of embedding factorized, whose rank then counts")


PART = feeb.LMHeadSpec(
    "factorized",
    FactorizedHeadConfig,
    build=f"{__name__}.factorized:FactorizedHead",
    summary="Factorized LM head: two matrices with a narrow space between; the second may be the table of embedding factorized.",
    reference="arXiv:1909.11942",
    since="1.1",
    equation="logits = E W z      W [rank, C], E [V, rank] of its own or, tied, that of embedding factorized",
)
