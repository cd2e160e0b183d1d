"""Knowledge distillation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator, model_validator

import feebcore as feeb
from feeb_models.objectives.options import absolute
from feebcore.config import Execution
from feebcore.train.config import model_digest


class DistillationConfig(feeb.PartConfig):
    teacher: Execution[str] = Field(description="teacher model of the same tokenizer: a model folder, or an artifact with one, relative to the recipe")
    teacher_content: str = Field("", description="hash of the teacher's weights; set automatically")
    temperature: float = Field(2.0, gt=0.0, description="softmax temperature of both models")
    weight: float = Field(0.5, ge=0.0, le=1.0, description="weight of the teacher's term; the rest is that of the next-token cross-entropy")

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Options for the contract, which needs a teacher on disk."""
        from feebcore.testing.objectives import model_folder

        return {"teacher": str(model_folder())}

    @field_validator("teacher")
    @classmethod
    def _absolute(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            raise ValueError("teacher: name the folder of a model")
        return absolute(value, info)

    @model_validator(mode="after")
    def _digested(self) -> DistillationConfig:
        object.__setattr__(self, "teacher_content", model_digest(Path(self.teacher)))
        return self


PART = feeb.ObjectiveSpec(
    "distillation",
    DistillationConfig,
    build=f"{__name__}.distillation:Distillation",
    summary="Knowledge distillation: a teacher's distribution over the next token, mixed with the token itself.",
    reference="arXiv:1503.02531",
    since="1.1",
    equation="loss = (1 − weight) CE + weight τ² KL(softmax(logits_teacher / τ) || softmax(logits / τ)),   τ = temperature",
    revision=2,  # counts the FLOPs of all that it runs
)
