"""Stage report: Writes one self-contained HTML page with every figure and number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


class ReportConfig(StageConfig):
    """Options of stage report."""


def check(section: ReportConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: ReportConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    raise NotImplementedError("to be written by its owner")
