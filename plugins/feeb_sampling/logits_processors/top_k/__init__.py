"""Logits processor `top_k`."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class TopKConfig(feeb.LogitsProcessorConfig):
    """Top-k truncation."""

    k: int = Field(50, ge=1, description="number of tokens that are kept")


PART = feeb.LogitsProcessorSpec(
    "top_k", TopKConfig, build=f"{__name__}.top_k:top_k", summary="Top-k: keeps the k most likely tokens.", reference="arXiv:1805.04833"
)
