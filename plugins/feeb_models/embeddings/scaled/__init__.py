"""A scaled embedding table."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class ScaledConfig(feeb.PartConfig):
    scale: float | None = Field(None, gt=0, description="factor on the vectors; default sqrt(d_model)")


PART = feeb.EmbeddingSpec(
    "scaled",
    ScaledConfig,
    build=f"{__name__}.scaled:ScaledEmbedding",
    summary="Token embedding times sqrt(d_model).",
    reference="arXiv:1706.03762",
    since="1.1",
    equation="r_t = s E[token_t],   s = √C unless scale is given",
)
