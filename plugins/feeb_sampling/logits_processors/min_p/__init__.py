"""Logits processor `min_p`."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class MinPConfig(feeb.LogitsProcessorConfig):
    """Min-p truncation."""

    min_p: float = Field(0.05, ge=0, le=1, description="tokens with a probability below this fraction of the highest one are removed")


PART = feeb.LogitsProcessorSpec(
    "min_p",
    MinPConfig,
    build=f"{__name__}.min_p:min_p",
    summary="Min-p: removes tokens far less likely than the most likely one.",
    reference="arXiv:2407.01082",
)
