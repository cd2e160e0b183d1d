"""Stage download: Fetches documents from sources, filters them and splits them by hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


class DownloadConfig(StageConfig):
    """Options of stage download."""


def check(section: DownloadConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: DownloadConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    raise NotImplementedError("to be written by its owner")
