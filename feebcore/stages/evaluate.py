"""Stage evaluate: Runs benchmarks on every model of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


class EvaluateConfig(StageConfig):
    """Options of stage evaluate."""


def check(section: EvaluateConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: EvaluateConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    raise NotImplementedError("to be written by its owner")
