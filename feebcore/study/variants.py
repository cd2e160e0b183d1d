"""Variants x seeds of one recipe: every run is proposed at once, and its conclusion is a page of claims (feebcore.claims)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from feebcore.artifacts import Workspace, read_artifact
from feebcore.errors import Diverged, FeebError, StageFailed
from feebcore.files import digest_of
from feebcore.recipe import Recipe
from feebcore.run.contracts import require_checked
from feebcore.study.executors import Execution, Executor, ProgressFn, current_execution
from feebcore.study.run import build_stages, open_ledger, run_study, stage_result
from feebcore.study.runs import RunSpec, run_id

Results = dict[str, dict[str, dict[str, Any]]]
"""Name of the run to stage to {path, fingerprint, status, seconds, metrics}."""


def run_variants(
    recipes: Sequence[Recipe], stages: Sequence[str] | None, workspace: Workspace, on_progress: ProgressFn, alone: Executor, unchecked: bool = False
) -> tuple[Results, dict[str, FeebError]]:
    """Build `stages` (None: all) of every recipe, and what they need; results and failures by run.

    One recipe is no study: `alone` builds it, and what it raises is raised. Of several, one that fails does not end the others.
    unchecked: also with parts of plugins that fail their contract. Raises Interrupted when asked to stop, PluginError for such a part.
    """
    require_checked(recipes, stages, workspace, on_progress, unchecked)
    results: Results = {recipe.name: {} for recipe in recipes}

    def follow(row: dict[str, Any]) -> None:
        if row["kind"] == "done":
            results[row["run"]][row["stage"]] = {key: row[key] for key in ("path", "fingerprint", "status", "seconds", "metrics")}
        on_progress(row)

    if len(recipes) == 1:
        build_stages(recipes[0].name, recipes[0], stages, workspace, {}, Execution(alone, current_execution().around), follow)
        return results, {}
    specs = propose(recipes, stages)
    with open_ledger(workspace, *study_name(specs, workspace)) as ledger:
        records = run_study(lambda records: specs, ledger, workspace, {}, lambda spec, artifacts: {}, follow)
    for record in records:
        for stage, path in record.result.get("artifacts", {}).items():
            artifact = read_artifact(workspace.root / path)
            if stage not in results[record.name] and artifact is not None:  # of an earlier call
                results[record.name][stage] = stage_result(artifact, True, 0.0)
    kinds: dict[str, Callable[[str], FeebError]] = {"failed": StageFailed, "diverged": Diverged}
    return results, {r.name: kinds[r.status](r.reason) for r in records if r.status in kinds}


def propose(recipes: Sequence[Recipe], stages: Sequence[str] | None) -> list[RunSpec]:
    """A run per recipe; those of the first variant are the baseline."""
    return [
        RunSpec(
            recipe.name,
            recipe,
            tuple(stages or recipe.stages),
            "baseline" if recipe.variant == recipes[0].variant else "candidate",
            {"variant": recipe.variant, "seed": recipe.seed},
        )
        for recipe in recipes
    ]


def study_name(specs: Sequence[RunSpec], workspace: Workspace) -> tuple[str, str]:
    """Name and identity of the study's ledger."""
    first = specs[0].recipe
    ids = [run_id(spec.recipe, spec.stages, workspace, {}) for spec in specs]
    return str(first.data.get("name") or first.path.stem), digest_of([ids, [spec.name for spec in specs]])[:12]
