"""Data order `curriculum`: easy sequences first."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

import feebcore as feeb


class CurriculumConfig(feeb.DataOrderConfig):
    """The measure of difficulty, and how soon harder sequences are added."""

    repeats: ClassVar[bool] = True
    inert = ("difficulty",)  # of a packing's sequences, which a check of the order alone has not

    difficulty: Literal["length", "unigram", "compression"] = Field(
        "unigram", description="difficulty of a sequence: tokens per document, nats per token by frequency, or bytes per token after zlib"
    )
    pacing: Literal["linear", "root", "quadratic", "exponential"] = Field("linear", description="how the fraction of available sequences grows")
    start: float = Field(0.2, gt=0, le=1, description="fraction of the sequences, easiest first, available at the start")
    until: float = Field(0.5, gt=0, le=1, description="fraction of the run after which all sequences are available")
    stages: int = Field(20, ge=1, description="number of steps in which the fraction grows")

    def follows_length(self) -> bool:
        return True


PART = feeb.DataOrderSpec(
    "curriculum",
    CurriculumConfig,
    build=f"{__name__}.curriculum:build_curriculum",
    summary="Easy sequences first; a pacing function adds harder ones.",
    reference="arXiv:2012.03107",
    since="1.1",
)
