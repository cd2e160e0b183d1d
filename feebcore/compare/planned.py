"""What a comparison would do, before it does: its runs, and the finished one where there is one. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.compare import cost
from feebcore.compare.plan import (
    STAGE,
    Candidate,
    Run,
    Settings,
    candidates_of,
    check_plan,
    curve_runs,
    equal_steps,
    has_lr,
    lr_run,
    main_runs,
    section_for,
    study_identity,
    token_steps,
    with_section,
)
from feebcore.files import digest_of
from feebcore.recipe import Recipe
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import PlanItem, plan_stage, stages_for
from feebcore.study.ledger import read_records
from feebcore.study.planned import noted, row_of, rows_of, unknown
from feebcore.study.runs import RunSpec


def finished_comparison(recipes: Sequence[Recipe], settings: Settings, workspace: Workspace) -> Artifact | None:
    """The artifact of this comparison, None while it or what it needs is not finished."""
    candidates = candidates_of(recipes, settings)
    built = built_of(shared_items(candidates[0].recipe, STAGE, workspace))
    if built is None:
        return None
    return workspace.find("compare", _fingerprint(candidates, settings, workspace, built))


def planned_runs(recipes: Sequence[Recipe], settings: Settings, workspace: Workspace) -> list[dict[str, Any]]:
    """Rows as of `feeb plan`: the shared stages, then every run. Raises RecipeError where the recipes cannot be compared."""
    candidates = candidates_of(recipes, settings)
    items = shared_items(candidates[0].recipe, STAGE, workspace)
    rows = [row_of(candidates[0].name, item) for item in items]
    built = built_of(items)
    steps = _steps(candidates, settings, workspace, built)
    own = {c.name: 1.0 for c in candidates}
    tuned = [c for c in candidates if settings.tune_lr != "off" and not c.same_as and has_lr(c.section.optimizer)]
    lengths = steps or {c.name: c.section.max_steps for c in candidates}
    trials = [lr_run(c, lengths[c.name], factor, settings) for c in tuned for factor in settings.lr_factors]
    runs = [*main_runs(candidates, lengths, own), *curve_runs(candidates[0], lengths[candidates[0].name], 1.0, settings)]
    if built is None or steps is None:
        why = "the stages before it are not built yet" if built is None else "its steps are measured when the comparison begins"
        return rows + [unknown(run.name, STAGE, why) for run in [*trials, *runs]]
    check_plan(candidates, steps, settings)
    folders = workspace.folders("compare", _fingerprint(candidates, settings, workspace, built))
    records = read_records(folders[0] / "ledger.sqlite") if folders else []
    rows += rows_of([_spec(candidates, run, steps) for run in trials], workspace, built)
    if tuned and settings.tune_lr == "best":
        return noted(rows + [unknown(run.name, STAGE, "its learning rate depends on the search") for run in runs], records)
    return noted(rows + rows_of([_spec(candidates, run, steps) for run in runs], workspace, built), records)


def _fingerprint(candidates: Sequence[Candidate], settings: Settings, workspace: Workspace, built: Mapping[str, Artifact]) -> str:
    inputs = {c.name: finished_inputs(c.recipe, STAGE, workspace, built) for c in candidates}
    return digest_of(study_identity(candidates, settings, inputs))[:12]


def shared_items(recipe: Recipe, trained: str, workspace: Workspace) -> list[PlanItem]:
    """The stages before the one that is compared."""
    built, items = dict[str, Artifact | None](), list[PlanItem]()
    for stage in stages_for(recipe, [trained]):
        if stage != trained:
            items.append(plan_stage(recipe, stage, workspace, built))
            built[stage] = items[-1].artifact
    return items


def built_of(items: Sequence[PlanItem]) -> dict[str, Artifact] | None:
    """Their artifacts, None while one is not built."""
    built = {item.stage: item.artifact for item in items if item.artifact is not None}
    return built if len(built) == len(items) else None


def _steps(candidates: Sequence[Candidate], settings: Settings, workspace: Workspace, built: Mapping[str, Artifact] | None) -> dict[str, int] | None:
    if settings.budget == "tokens":
        return token_steps(candidates)
    if settings.budget == "time" or built is None:
        return None
    costs = {c.name: cost.flops_per_step(c.recipe, finished_inputs(c.recipe, STAGE, workspace, built)["tokens"]) for c in candidates}
    base = candidates[0]
    return {c.name: equal_steps(base.section.max_steps, costs[base.name], costs[c.name]) for c in candidates}


def _spec(candidates: Sequence[Candidate], run: Run, steps: Mapping[str, int]) -> RunSpec:
    candidate = next(c for c in candidates if c.name == run.recipe)
    return RunSpec(run.name, with_section(candidate.recipe, run.name, section_for(candidate.section, run, steps[candidate.name])))
