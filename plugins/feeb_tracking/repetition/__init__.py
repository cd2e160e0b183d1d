"""Degenerate repetition in generated text."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_tracking.options import ProbeConfig


class RepetitionConfig(ProbeConfig):
    every: int = Field(200, ge=1, description="generate every N steps, and before the first and after the last step")
    prompt_tokens: int = Field(8, ge=1, description="tokens of each sequence that serve as the prompt")
    max_new_tokens: int = Field(64, ge=8, description="maximum number of generated tokens, limited by the context length")
    flag_above: float = Field(0.5, gt=0, lt=1, description="log a warning above this fraction of repeated 4-grams in excess of that of the training text")


PART = feeb.CallbackSpec(
    "repetition",
    RepetitionConfig,
    build=f"{__name__}.repetition:Repetition",
    since="1.1",
    summary="Repetition in greedy and sampled text, with a warning when it becomes degenerate.",
    reference="arXiv:1904.09751",
)
