"""A factorized embedding."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class FactorizedConfig(feeb.PartConfig):
    rank: int = Field(128, ge=1, description="width of the table; below d_model it saves parameters")


PART = feeb.EmbeddingSpec(
    "factorized",
    FactorizedConfig,
    build=f"{__name__}.factorized:FactorizedEmbedding",
    summary="Factorized embedding: a narrow vector per token, projected to d_model; head factorized can share the table.",
    reference="arXiv:1909.11942",
    since="1.1",
    equation="r_t = W E[token_t]      E [V, rank], W [C, rank]",
)
