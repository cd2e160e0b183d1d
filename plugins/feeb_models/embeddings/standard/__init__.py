"""An embedding table."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.EmbeddingSpec(
    "standard", build=f"{__name__}.standard:StandardEmbedding", summary="Token embedding table: one vector per token.", equation="r_t = E[token_t]"
)
