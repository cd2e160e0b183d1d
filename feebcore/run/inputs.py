"""The input artifacts of a stage: what the stages before it made, or the artifacts that the recipe names under `inputs:`."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path

from feebcore.artifacts import Artifact, Workspace, read_artifact
from feebcore.errors import ArtifactError, RecipeError, did_you_mean
from feebcore.recipe import NamedInput, Recipe


def input_artifacts(recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact | None]) -> dict[str, Artifact | None]:
    """The stage's inputs by name; None for one that is not built yet. built: artifacts of the recipe's stages so far."""
    return {
        name: find_input(recipe.inputs[provider], workspace) if provider in recipe.inputs else built.get(provider)
        for name, provider in recipe.needs(stage).items()
    }


def finished_inputs(recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The stage's inputs by name, all of them finished; KeyError for one that `built` lacks."""
    inputs = input_artifacts(recipe, stage, workspace, built)
    return {name: artifact if artifact is not None else built[recipe.needs(stage)[name]] for name, artifact in inputs.items()}


def find_input(named: NamedInput, workspace: Workspace) -> Artifact:
    """The finished artifact that a recipe names in the place of a stage: of several of one name, the newest.

    Raises RecipeError that says where it is named and what there is instead.
    """
    where = named.where
    artifact = _in_folder(Path(named.reference), named) if named.reference.startswith("/") else _by_name(named, workspace)
    if missing := [kind for kind in named.spec.makes if kind not in artifact.makes]:
        has = ", ".join(artifact.makes) or "nothing that another stage needs"
        raise RecipeError(f"{where}: {artifact.path} holds {has}; instead of stage {named.stage} it must hold {missing[0]}")
    artifact.check_sizes()
    return artifact


def _in_folder(folder: Path, named: NamedInput) -> Artifact:
    artifact = read_artifact(folder)
    if artifact is None:
        what = f"{folder} is not a finished artifact (it has no manifest.json)" if folder.is_dir() else f"there is no folder {folder}"
        raise RecipeError(f"{named.where}: {what}; `feeb artifacts import FOLDER {named.stage} NAME` makes an artifact of files made elsewhere")
    return artifact


def _by_name(named: NamedInput, workspace: Workspace) -> Artifact:
    stage, _, name = named.reference.rpartition("/")
    parent = workspace.root / (stage or named.stage)
    folders = [*parent.glob(f"{glob.escape(name)}-*"), *parent.glob(glob.escape(name))] if name and parent.is_dir() else []
    artifacts = []
    for folder in folders:
        if folder.is_dir() and name in (folder.name, folder.name.rpartition("-")[0]):
            artifacts.append(read_artifact(folder))
    finished = [a for a in artifacts if a is not None]
    if finished:
        return max(finished, key=lambda a: a.manifest["finished"])
    if artifacts:
        raise RecipeError(f"{named.where}: {named.reference!r} is unfinished in {parent}; finish it first")
    raise RecipeError(f"{named.where}: no artifact {named.reference!r} of stage {stage or named.stage} in {workspace.root}; {_near(named, workspace)}")


def _near(named: NamedInput, workspace: Workspace) -> str:
    """What could have been meant: artifacts that hold what the stage makes."""
    names: dict[str, None] = {}
    try:
        for _, artifact in workspace.all(damaged=lambda folder, error: None):
            if artifact is not None and set(named.spec.makes) <= set(artifact.makes):
                names[artifact.name if artifact.stage == named.stage else f"{artifact.stage}/{artifact.name}"] = None
    except ArtifactError:
        names = {}
    return did_you_mean(named.reference, names) if names else f"it has no artifact with {' and '.join(named.spec.makes) or 'that'} yet"
