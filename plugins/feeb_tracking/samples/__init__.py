"""Text samples."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig


class SamplesConfig(PartConfig):
    every: int = Field(200, ge=1, description="generate every N steps, and at the end")
    prompts: list[str] = Field(["def ", "import ", '"""'], description="prompts; an empty one starts from BOS alone")
    max_new_tokens: int = Field(48, ge=1, description="maximum number of generated tokens per prompt")
    temperature: float = Field(0.8, gt=0, description="sampling temperature")


PART = feeb.CallbackSpec("samples", SamplesConfig, build=f"{__name__}.samples:Samples", summary="Text generated during training, in samples.jsonl.")
