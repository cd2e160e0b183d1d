"""Logits processor `top_p`."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class TopPConfig(feeb.LogitsProcessorConfig):
    """Nucleus sampling."""

    p: float = Field(0.95, gt=0, le=1, description="probability of the kept tokens, the token that crosses it included")


PART = feeb.LogitsProcessorSpec(
    "top_p",
    TopPConfig,
    build=f"{__name__}.top_p:top_p",
    summary="Top-p (nucleus): keeps the most likely tokens whose probabilities add up to p.",
    reference="arXiv:1904.09751",
)
