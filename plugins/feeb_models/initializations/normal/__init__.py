"""Normal weights, as GPT-2's."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class NormalConfig(feeb.PartConfig):
    std: float = Field(0.02, gt=0, description="standard deviation σ")
    embedding_std: float | None = Field(None, gt=0, description="standard deviation of embedding tables; default std")
    residual_scale: bool = Field(True, description="divide σ of residual projections by sqrt(2 num_layers)")
    zero_residual: bool = Field(False, description="residual projections start at zero: every block is the identity at first")
    zero_lm_head: bool = Field(False, description="an untied LM head starts at zero, so the first loss is exactly ln V")


PART = feeb.InitializationSpec(
    "normal",
    NormalConfig,
    build=f"{__name__}.normal:Normal",
    revision=2,  # weights are drawn by name
    summary="N(0, σ), residual projections scaled down by sqrt(2 num_layers).",
    reference="GPT-2",
    equation="W ~ N(0, std²);   maps to the stream N(0, std² / 2L)",
)
