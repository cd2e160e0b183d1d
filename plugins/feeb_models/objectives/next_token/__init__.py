"""Cross-entropy of the next token."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.objectives.options import NextTokenConfig

NEXT_TOKEN = f"{__name__}.next_token"

PARTS = (
    feeb.ObjectiveSpec(
        "next_token",
        NextTokenConfig,
        build=f"{NEXT_TOKEN}:NextToken",
        summary="Next-token cross-entropy on all tokens.",
        equation="loss = (1/N) Σ_t −log p(token_{t+1} | tokens_≤t)",
    ),
    feeb.ObjectiveSpec(
        "completion_only",
        NextTokenConfig,
        build=f"{NEXT_TOKEN}:CompletionOnly",
        summary="Next-token cross-entropy on completion tokens only; prompt tokens are masked.",
        equation="as next_token; t over the positions whose next token belongs to the completion, N of them",
    ),
)
