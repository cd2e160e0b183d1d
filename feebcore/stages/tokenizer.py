"""Stage tokenizer: Trains a tokenizer on the training documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import StageConfig

if TYPE_CHECKING:
    from feebcore.recipe import Recipe


class TokenizerConfig(StageConfig):
    """Options of stage tokenizer."""


def check(section: TokenizerConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    return []


def run(section: TokenizerConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    raise NotImplementedError("to be written by its owner")
