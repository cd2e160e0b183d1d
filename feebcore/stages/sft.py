"""Stage sft: Fine-tunes a model on solved examples of a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


class SftConfig(StageConfig):
    """Options of stage sft."""


def check(section: SftConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: SftConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    raise NotImplementedError("to be written by its owner")
