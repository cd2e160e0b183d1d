"""What a study would do and what became of its runs so far: rows for `feeb plan` and `feeb runs`. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import ArtifactError, plural
from feebcore.run.plan import PlanItem, plan_stage
from feebcore.study.ledger import read_records
from feebcore.study.runs import RunRecord, RunSpec


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


def state_of(record: RunRecord) -> tuple[str, str]:
    """'failed', 'diverged', 'running' or 'waiting', and why, of a run that is not done."""
    reason = record.reason.partition("\n")[0]
    if record.status == "failed":
        return "failed", f"failed {plural(record.failures, 'time')}: {reason}" if record.failures else reason
    if record.status == "planned":
        return "waiting", f"failed {plural(record.failures, 'time')} and will be retried: {reason}" if record.failures else "not begun"
    return ("diverged", reason) if record.status == "diverged" else ("running", f"attempt {record.attempts}")


def noted(rows: Iterable[dict[str, Any]], records: Iterable[RunRecord]) -> list[dict[str, Any]]:
    """Rows as of `row_of` with what the ledger knows of their runs that are not done: in `differs` of the run's first stage that is not
    reused, and `status` 'diverged' of one that is not tried again."""
    states = {record.name: state_of(record) for record in records if record.status != "done"}
    result = []
    for row in rows:
        if row["status"] != "reuse" and row["run"] in states:
            state, reason = states.pop(row["run"])
            row = row | {"differs": [f"{state}: {reason}"]} | ({"status": state} if state == "diverged" else {})
        result.append(row)
    return result


def open_runs(workspace: Workspace) -> list[dict[str, Any]]:
    """{study, run, fingerprint, status, reason} of every run in a ledger of the workspace that is not done. study: folder or file of the ledger.
    A ledger that cannot be read is a row with status 'damaged'."""
    rows: list[dict[str, Any]] = []
    for path in sorted([*workspace.root.glob(".studies/*.sqlite"), *workspace.root.glob("[!.]*/*/ledger.sqlite")]):
        study: Path = path if path.parent.name == ".studies" else path.parent
        try:
            records = [record for record in read_records(path) if record.status != "done"]
        except ArtifactError as error:
            rows.append({"study": study, "run": study.stem, "fingerprint": "", "status": "damaged", "reason": str(error)})
            continue
        rows += [dict(zip(("study", "run", "fingerprint", "status", "reason"), (study, r.name, r.id, *state_of(r)), strict=True)) for r in records]
    return rows
