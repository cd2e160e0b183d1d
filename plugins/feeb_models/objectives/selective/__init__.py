"""Training on the tokens that are worth learning (Rho-1)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb
from feeb_models.objectives.options import absolute
from feebcore.config import Execution
from feebcore.train.config import model_digest


class SelectiveConfig(feeb.PartConfig):
    keep_ratio: float = Field(0.6, gt=0.0, le=1.0, description="fraction of each sequence's tokens that are trained on")
    reference: Execution[str] = Field(
        "", description="reference model whose loss is subtracted: a model folder, or an artifact with one, relative to the recipe; empty: none"
    )
    reference_content: str = Field("", description="hash of the reference model's weights; set automatically")

    @field_validator("reference")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        return absolute(value, info)

    @model_validator(mode="after")
    def _digested(self) -> SelectiveConfig:
        object.__setattr__(self, "reference_content", model_digest(Path(self.reference)) if self.reference else "")
        return self


PART = feeb.ObjectiveSpec(
    "selective",
    SelectiveConfig,
    build=f"{__name__}.selective:Selective",
    summary="Selective language modeling (Rho-1): only the tokens with the highest loss in excess of a reference model's.",
    reference="arXiv:2404.07965",
    since="1.1",
    equation="loss = mean of −log p(token_{t+1}) over the keep_ratio of each sequence with the largest excess\n"
    "excess_t = −log p(token_{t+1}) + log p_reference(token_{t+1})      without a reference: −log p(token_{t+1})",
    revision=2,  # counts the FLOPs of all that it runs
)
