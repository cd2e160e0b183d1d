"""A normalized embedding."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.EmbeddingSpec(
    "normed",
    build=f"{__name__}.normed:NormedEmbedding",
    summary="Token embedding, normalized before the first block.",
    reference="https://github.com/karpathy/nanochat",
    since="1.1",
    equation="r_t = norm(E[token_t])",
)
