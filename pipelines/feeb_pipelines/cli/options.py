"""Options shared by several commands."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")

Set = Annotated[
    list[str],
    Parameter(name="--set", help="Override a recipe key: --set pretrain.max_steps=100. May be repeated.", negative=(), show_default=False),
]
Input = Annotated[
    list[str],
    Parameter(
        name="--input",
        help="Use a finished artifact instead of building a stage: --input pretrain=smol. A name, STAGE/NAME, STAGE/NAME-FINGERPRINT or a folder. "
        "May be repeated.",
        negative=(),
        show_default=False,
    ),
]
Plugin = Annotated[list[str], Parameter(name="--plugin", help="Load a single-file plugin, e.g. ./idea.py. May be repeated.", negative=(), show_default=False)]
WorkspaceOption = Annotated[Path | None, Parameter(name=["--workspace", "-w"], help="Workspace folder. Default: FEEB_WORKSPACE, else ./data.")]
Unchecked = Annotated[
    bool,
    Parameter(
        name="--unchecked", help="Use parts of plugins without checking them first; manifests and pages then name them.", negative=(), show_default=False
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=(), show_default=False)]


def visible(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters but tab and newline, and marks that reorder text, as escapes."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def with_inputs(overrides: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """The texts of --set with those of --input among them. Raises UsageError for one that is not STAGE=ARTIFACT."""
    from feebcore.errors import UsageError
    from feebcore.files import expand_user

    texts = list(overrides)
    for text in inputs:
        stage, sign, reference = text.partition("=")
        if not sign or not stage or not reference:
            raise UsageError(f"--input {text!r}: write STAGE=ARTIFACT, as in --input pretrain=smol")
        folder = expand_user(reference)
        if reference.startswith((".", "/", "~")) or (folder / "manifest.json").exists():
            reference = str(folder.absolute())
        texts.append(f"inputs.{stage}={json.dumps(reference)}")
    return texts


def is_recipe(text: str) -> bool:
    """Whether an argument names a recipe's file rather than a run or a stage; also one that does not exist."""
    return Path(text).is_file() or Path(text).suffix in (".yaml", ".yml")


def stage_and_recipe(first: str, second: str | None) -> tuple[str | None, str]:
    """A stage (None: all) and a recipe, given in either order. Raises RecipeError where there is no recipe."""
    from feebcore.errors import RecipeError

    if second is None:
        if not is_recipe(first) and first in _stage_names():
            raise RecipeError(f"{first!r} is a stage; name the recipe too, as in feeb run RECIPE.yaml {first}")
        return None, first
    if is_recipe(first) and is_recipe(second):
        raise RecipeError(f"{first} and {second} are both recipes; one recipe at a time, with a stage before or after it")
    return (second, first) if is_recipe(first) else (first, second)


def _stage_names() -> list[str]:
    from feebcore.registry import get_registry

    return [spec.name for _, spec in get_registry().parts("stages")]


def with_stage(stage: str | None, recipe: str, overrides: Sequence[str]) -> list[str]:
    """The overrides with which the recipe runs `stage` as well: one that it does not list is put at the end of its stages.

    Its needs are checked as those of any stage when the recipe is loaded."""
    from feebcore.recipe_yaml import read_merged

    listed = read_merged(Path(recipe), overrides)[0].get("stages")
    if stage is None or not isinstance(listed, list) or stage in [str(s).rpartition("/")[2] for s in listed] or stage not in _stage_names():
        return list(overrides)
    return [*overrides, f"stages={json.dumps([*listed, stage])}"]
