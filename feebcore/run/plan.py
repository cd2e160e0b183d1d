"""What running a recipe would do: fingerprints, what is reused, and which key makes the difference. Writes nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feebcore.artifacts import Artifact, Workspace
from feebcore.config import identity_of
from feebcore.errors import ArtifactError, RecipeError, did_you_mean
from feebcore.files import digest_of
from feebcore.parts import identity_of_spec
from feebcore.provenance import made_elsewise
from feebcore.recipe import Recipe
from feebcore.run.inputs import find_input, input_artifacts


@dataclass(frozen=True)
class PlanItem:
    """What will happen to one stage. status: 'reuse', 'continue' (unfinished folder), 'run', or 'run' without a
    fingerprint when an input is still to be built. differs: why it is not reused (`explain_differences`)."""

    stage: str
    status: str
    fingerprint: str = ""
    artifact: Artifact | None = None
    path: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    differs: tuple[str, ...] = ()


def identity(recipe: Recipe, stage: str, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Everything that changes this stage's result, as plain JSON."""
    entry = recipe.stages[stage]
    result: dict[str, Any] = identity_of_spec(entry.spec) | {"section": identity_of(entry.section)}
    result["inputs"] = {name: artifact.digest for name, artifact in sorted(inputs.items())}
    if entry.spec.shows:
        result["shows"] = {"recipe": digest_of(recipe.resolved()), "inputs": {name: digest_of(a.manifest) for name, a in sorted(inputs.items())}}
    return result


def require_unchanged(recipe: Recipe, stage: str, inputs: Mapping[str, Artifact], planned: Mapping[str, Any]) -> None:
    """Raises ArtifactError where the stage would now have another identity than was planned: a file that it names was written
    again in the meantime, or the source of a part was edited."""
    changed = differences(dict(planned), json.loads(json.dumps(identity(recipe, stage, inputs))))
    if changed:
        raise ArtifactError(
            f"{recipe.name}: what {stage} depends on has changed since it was planned ({'; '.join(changed)}), so it was not begun; run the same command again"
        )


def revalidated(recipe: Recipe, stage: str) -> Recipe:
    """The recipe with the section of `stage` validated anew, so that digests of what it names are of now. Raises ArtifactError
    where it is not valid any more, as when a file is gone."""
    entry = recipe.stages[stage]
    context = {"registry": recipe.registry, "recipe_folder": recipe.path.parent}
    try:
        section = entry.spec.config.model_validate(entry.section.model_dump(mode="json"), context=context)
    except ValidationError as error:
        why = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors(include_url=False))
        raise ArtifactError(f"{recipe.name}: {stage} was planned, but cannot begin any more: {why}") from None
    return dataclasses.replace(recipe, stages=recipe.stages | {stage: dataclasses.replace(entry, section=section)})


def reused_from_another_feeb(artifacts: Iterable[Artifact]) -> str:
    """One line of advice on artifacts that are reused though another feeb made them; '' where none was."""
    made = [(f"{a.stage}/{a.name}", how) for a in artifacts if (how := made_elsewise(a.manifest.get("environment", {})))]
    if not made:
        return ""
    names = list(dict.fromkeys(name for name, _ in made))
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"reused {listed}: made with {made[0][1]}; to rebuild, remove the folder"


def stages_for(recipe: Recipe, stages: Iterable[str] | None = None) -> list[str]:
    """`stages` (default all) and whatever they need, in running order. Raises RecipeError for one the recipe lacks."""
    needed: set[str] = set()
    for stage in stages or recipe.stages:
        if stage in recipe.inputs:
            raise RecipeError(f"{recipe.inputs[stage].where}: stage {stage!r} is not built, as inputs names an artifact in its place")
        if stage not in recipe.stages:
            raise RecipeError(f"{recipe.path}: the recipe runs no stage {stage!r}; {did_you_mean(stage, recipe.stages)}")
        needed.update(recipe.upstream(stage))
    return [s for s in recipe.stages if s in needed]


def plan(recipe: Recipe, workspace: Workspace, stages: Iterable[str] | None = None) -> list[PlanItem]:
    """What running `stages` (default all) and whatever they need would do, in running order. Writes nothing.

    Raises RecipeError for a named input that is not there, also for one that only spares a stage.
    """
    for stage, named in recipe.inputs.items():
        if stage not in recipe.used_inputs():
            find_input(named, workspace)
    items: dict[str, PlanItem] = {}
    for stage in stages_for(recipe, stages):
        items[stage] = plan_stage(recipe, stage, workspace, {s: i.artifact for s, i in items.items()})
    return list(items.values())


def plan_stage(recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact | None]) -> PlanItem:
    """The plan of one stage, given the artifacts of the stages before it (None: not built yet); named inputs are found here."""
    inputs: dict[str, Artifact] = {}
    for name, artifact in input_artifacts(recipe, stage, workspace, built).items():
        if artifact is None:
            return PlanItem(stage, "run", differs=(f"input {recipe.needs(stage)[name]} is not built yet",))
        inputs[name] = artifact
    stage_identity = identity(recipe, stage, inputs)
    fingerprint = digest_of(stage_identity)[:12]
    existing = workspace.find(stage, fingerprint)
    if existing is not None:
        return PlanItem(stage, "reuse", fingerprint, existing, existing.path, stage_identity)
    folders = workspace.folders(stage, fingerprint)
    if folders:
        return PlanItem(stage, "continue", fingerprint, None, folders[0], stage_identity)
    return PlanItem(stage, "run", fingerprint, None, workspace.root / stage / f"{recipe.name}-{fingerprint}", stage_identity)


def explain_differences(items: Iterable[PlanItem], workspace: Workspace, name: str) -> list[PlanItem]:
    """The items, those to run with the dotted keys in which they differ from the most similar finished artifact of their stage;
    of equally similar ones, from one called `name`. Reads every manifest of these stages."""
    return [
        dataclasses.replace(item, differs=_nearest_difference(workspace, item.stage, name, item.identity)) if item.status == "run" and item.identity else item
        for item in items
    ]


def _nearest_difference(workspace: Workspace, stage: str, name: str, stage_identity: dict[str, Any]) -> tuple[str, ...]:
    best: tuple[int, bool, tuple[str, ...]] | None = None
    for _, artifact in workspace.all(damaged=lambda folder, error: None, stage=stage):
        if artifact is None or "section" not in artifact.manifest["identity"]:
            continue
        keys = differences(artifact.manifest["identity"], stage_identity)
        rank = (len(keys), artifact.name != name, keys)
        best = rank if best is None or rank[:2] < best[:2] else best
    return best[2] if best else ()


def differences(old: Any, new: Any, prefix: str = "") -> tuple[str, ...]:
    """Each key in which two identities differ, as 'pretrain key: old -> new'; of a part's source that it changed."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        changed: tuple[str, ...] = ()
        if "part" in new and old.get("part") == new["part"] and old.get("source") != new.get("source"):
            changed, keys = (f"the source code of {new['part']} changed",), [key for key in keys if key != "source"]
        return changed + tuple(d for k in keys for d in differences(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k))
    if old == new:
        return ()
    short = lambda v: "default" if v is None else (v[:12] if isinstance(v, str) else json.dumps(v))  # noqa: E731
    return (f"{prefix.removeprefix('section.')}: {short(old)} -> {short(new)}",)
