"""Options that several objectives have."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationInfo

from feebcore import PartConfig
from feebcore.files import expand_user


class NextTokenConfig(PartConfig):
    z_loss: float = Field(0.0, ge=0.0, description="weight of logsumexp(logits)^2, which keeps logits small")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="weight of a uniform distribution mixed into the target")


def absolute(folder: str, info: ValidationInfo) -> str:
    """A folder as an absolute path; relative ones are the recipe's."""
    base = Path((info.context or {}).get("recipe_folder", "."))
    return str((base / expand_user(folder)).absolute()) if folder else ""
