"""What a study would do, run by run: rows for `feeb plan`. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.run.plan import PlanItem, plan_stage
from feebcore.study.runs import RunSpec


def row_of(run: str, item: PlanItem) -> dict[str, Any]:
    """{run, stage, status: 'run', 'reuse' or 'continue', fingerprint, path, differs}."""
    path = str(item.path) if item.path else None
    return {"run": run, "stage": item.stage, "status": item.status, "fingerprint": item.fingerprint, "path": path, "differs": list(item.differs)}


def rows_of(specs: Iterable[RunSpec], workspace: Workspace, built: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """A row a run, for the last stage of each; what it needs is in `built`."""
    return [row_of(spec.name, plan_stage(spec.recipe, spec.stages[-1], workspace, built)) for spec in specs]


def unknown(run: str, stage: str, why: str) -> dict[str, Any]:
    """The row of a run whose fingerprint cannot be told yet."""
    return row_of(run, PlanItem(stage, "run", differs=(why,)))
