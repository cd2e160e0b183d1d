"""`feeb plan`, `show`, `parts`, `plugins`, `runs`, `check`: read-only commands."""

from __future__ import annotations

import dataclasses
import json as json_module
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Input, Json, Plugin, Set, WorkspaceOption, with_inputs

RecipePath = Annotated[str, Parameter(help="A recipe (YAML file).")]
StageName = Annotated[str | None, Parameter(help="Only this stage and its inputs.")]

if TYPE_CHECKING:
    from feebcore.artifacts import Artifact


def plan(
    recipe: RecipePath,
    stage: StageName = None,
    /,
    *,
    set: Set = [],  # noqa: B006
    input: Input = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Show what `feeb run` would do: which stages run, which are reused, and which keys changed.

    Every run of a study is listed, and every run of a sweep that is not finished, with the reason if it failed or diverged. `feeb compare
    --plan` lists those of a comparison.

    Examples:
        feeb plan experiments/quickstart.yaml --set pretrain.max_steps=100
        feeb plan experiments/quickstart.yaml pretrain --json
    """
    from feebcore.artifacts import Workspace
    from feebcore.recipe import load_study
    from feebcore.run.plan import explain_differences, reused_from_another_feeb
    from feebcore.run.plan import plan as plan_stages
    from feebcore.scaling.config import SweepConfig
    from feebcore.study.ledger import read_records
    from feebcore.study.planned import noted, row_of
    from feebcore.study.run import ledger_of
    from feebcore.study.variants import propose, study_name

    space = Workspace(workspace)
    rows: list[dict[str, Any]] = []
    reused: list[Artifact] = []
    recipes = load_study(recipe, with_inputs(set, input))
    for run in recipes:
        items = plan_stages(run, space, [stage] if stage else None)
        reused += [item.artifact for item in items if item.artifact is not None]
        built = {item.stage: item.artifact for item in items if item.artifact is not None}
        for item in explain_differences(items, space, run.name):
            if isinstance(run.stages[item.stage].section, SweepConfig) and item.artifact is None:
                from feebcore.scaling.sweep import planned_cells

                records = read_records(item.path / "ledger.sqlite") if item.path else []
                rows += noted(planned_cells(run, item.stage, space, built), records)
            rows.append(row_of(run.name, item))
    if len(recipes) > 1:
        ledger = ledger_of(space, *study_name(propose(recipes, [stage] if stage else None), space))
        rows = noted(rows, read_records(ledger))
    print_plan(rows, json)
    if advice := reused_from_another_feeb(reused):
        print(advice, file=sys.stderr)


def print_plan(rows: Sequence[dict[str, Any]], json: bool) -> None:
    """Rows of feebcore.study.planned as a table, or as JSON."""
    if json:
        return _print_json(rows)
    words = {"run": "run", "reuse": "reuse", "continue": "resume", "diverged": "none"}
    return _print_table(
        ("run", "stage", "action", "reason"),
        [
            (
                r["run"],
                r["stage"],
                words[r["status"]],
                "; ".join(r["differs"]) or (r["path"] if r["status"] in ("reuse", "continue") else "no matching artifact"),
            )
            for r in rows
        ],
    )


def show(recipe: RecipePath, /, *, set: Set = [], json: Json = False) -> None:  # noqa: B006
    """Print the resolved recipe: `extends` merged and every default included. The output is itself a valid recipe.

    For a study, every run is printed, separated by `---`.

    Examples:
        feeb show experiments/quickstart.yaml
        feeb show experiments/quickstart.yaml --set seed=3 > seed3.yaml
    """
    from feebcore.recipe import load_study, to_yaml

    recipes = load_study(recipe, set)
    if json:
        resolved = [r.resolved() for r in recipes]
        return _print_json(resolved if len(resolved) > 1 else resolved[0])
    sys.stdout.write("---\n".join(to_yaml(r) for r in recipes))
    return None


def parts(
    kind: Annotated[str | None, Parameter(help="Only parts of this kind, e.g. optimizers.")] = None,
    /,
    *,
    plugin: Plugin = [],  # noqa: B006
    json: Json = False,
) -> None:
    """List every part that a recipe can use, by kind, with summary and reference.

    Examples:
        feeb parts
        feeb parts optimizers --json
    """
    from feebcore.errors import UnknownPartError, did_you_mean
    from feebcore.hookspecs import KINDS
    from feebcore.registry import get_registry

    if kind is not None and kind not in KINDS:
        raise UnknownPartError(f"there is no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    rows: list[dict[str, Any]] = [
        {
            "kind": s,
            "name": spec.name,
            "full_name": spec.full_name,
            "distribution": spec.distribution,
            "summary": spec.summary,
            "reference": spec.reference,
            "revision": spec.revision,
            "origin": spec.origin,
            "options": {k: _default(f) for k, f in spec.config.model_fields.items()},
        }
        for s, spec in get_registry(_files(plugin)).parts(kind)
    ]
    if json:
        return _print_json(rows)
    shown = [(r["kind"], r["name"] if r["full_name"].startswith("feeb/") else r["full_name"], r["summary"], r["reference"]) for r in rows]
    return _print_table(("kind", "part", "summary", "reference"), shown)


def plugins(*, plugin: Plugin = [], json: Json = False) -> int:  # noqa: B006
    """List installed plugins, the number of their parts, and load errors.

    Example:
        feeb plugins
    """
    from feebcore.registry import get_registry

    found = get_registry(_files(plugin)).plugins
    if json:
        _print_json([{"distribution": p.distribution, "version": p.version, "origin": p.origin, "parts": p.num_parts, "problem": p.problem} for p in found])
    else:
        _print_table(
            ("plugin", "version", "origin", "parts", "problem"), [(p.distribution, p.version, p.origin, str(p.num_parts), p.problem or "none") for p in found]
        )
    return 0


def runs(stage: Annotated[str | None, Parameter(help="Show only this stage.")] = None, /, *, workspace: WorkspaceOption = None, json: Json = False) -> None:
    """List the artifacts of the workspace with status and metrics, and failed, diverged, running and waiting runs of studies with the reason.

    --json adds their paths.

    Examples:
        feeb runs
        feeb runs pretrain --json
    """
    from feebcore.artifacts import Workspace
    from feebcore.study.planned import open_runs

    space = Workspace(workspace)
    damaged: list[dict[str, Any]] = []
    found = space.all(damaged=lambda folder, error: damaged.append(_run_row(folder, None, "damaged", str(error))))
    rows = [*(_run_row(folder, artifact) for folder, artifact in found), *damaged]
    rows = [r for r in _with_runs(rows, open_runs(space)) if stage in (None, r["stage"])]
    if json:
        return _print_json(rows)
    if not rows:
        what = "nothing" if stage is None else f"no artifact of stage {stage!r}"
        print(f"{what} in {space.root} yet; create some with feeb run RECIPE")
        return None
    return _print_table(
        ("stage", "name", "fingerprint", "status", "created", "metrics"),
        [(r["stage"], r["name"], r["fingerprint"], r["status"], r["created"], r["reason"] or _with_unchecked(r)) for r in rows],
    )


def _with_unchecked(row: dict[str, Any]) -> str:
    from feeb_pipelines.summary import headline

    return "; ".join([*([f"unchecked parts: {', '.join(row['unchecked'])}"] if row["unchecked"] else []), headline(row["metrics"])])


def _with_runs(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of artifacts with the state of the run that makes each, then a row per run of a study that has no folder."""
    states = {run["fingerprint"]: run for run in runs}
    told: set[str] = set()
    for row in rows:
        run = states.get(row["fingerprint"])
        if run is not None and (row["status"] in ("running", "unfinished") or run["status"] == "diverged"):
            row |= {"status": run["status"], "reason": run["reason"]}
        told.add(row["fingerprint"])
    others = [run for run in runs if run["fingerprint"] not in told]
    common: dict[str, Any] = {"created": "", "seconds": None, "metrics": {}, "unchecked": []}
    return rows + [
        {
            "stage": "study" if run["study"].suffix == ".sqlite" else "pretrain",
            "name": run["run"],
            "fingerprint": run["fingerprint"],
            "path": str(run["study"]),
            "status": run["status"],
            **common,
            "reason": run["reason"],
        }
        for run in others
    ]


def _run_row(folder: Any, artifact: Any, status: str = "", reason: str = "") -> dict[str, Any]:
    from datetime import UTC, datetime

    if artifact is not None:
        found = {"stage": artifact.stage, "name": artifact.name, "fingerprint": artifact.fingerprint, "path": str(folder), "status": "finished", "reason": ""}
        return found | {
            "created": artifact.manifest["created"],
            "seconds": artifact.manifest["seconds"],
            "metrics": artifact.metrics,
            "unchecked": artifact.manifest.get("unchecked", []),
        }
    name, _, fingerprint = folder.name.rpartition("-")
    created = datetime.fromtimestamp(folder.stat().st_ctime, UTC).isoformat(timespec="seconds")
    found = {"stage": folder.parent.name, "name": name, "fingerprint": fingerprint, "path": str(folder), "reason": reason}
    return found | {
        "status": status or ("running" if _is_locked(folder) else "unfinished"),
        "created": created,
        "seconds": None,
        "metrics": {},
        "unchecked": [],
    }


def _is_locked(folder: Any) -> bool:
    import fcntl

    try:
        with open(folder.parent / f".{folder.name.rpartition('-')[2]}.lock", encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check(
    name: Annotated[str | None, Parameter(help="Part, e.g. lion or optimizers/lion; or a kind, e.g. optimizers, for all its parts.")] = None,
    /,
    *,
    all: Annotated[bool, Parameter(help="Check every part of every plugin.", negative=(), show_default=False)] = False,
    full: Annotated[bool, Parameter(help="Also run the slow checks: torch.compile, two processes.", negative=(), show_default=False)] = False,
    plugin: Plugin = [],  # noqa: B006
    json: Json = False,
) -> int:
    """Run the contract tests of parts: a line per check of one part, a line per part and per failed check of several. Exits with status 1
    if a check fails.

    Examples:
        feeb check lion --plugin ./lion.py
        feeb check optimizers
        feeb check --all
        feeb check architectures --full
    """
    from feebcore.errors import FeebError, did_you_mean, plural
    from feebcore.hookspecs import KINDS
    from feebcore.registry import get_registry
    from feebcore.testing.framework import CheckResult, candidate, iterate

    if (name is None) != all:
        raise FeebError("name one part or kind, or pass --all; `feeb parts` lists them")
    registry = get_registry(_files(plugin))
    chosen = [
        (kind, spec) for kind, spec in registry.parts() if all or name in (kind, spec.name, spec.full_name, f"{kind}/{spec.name}", f"{kind}/{spec.full_name}")
    ]
    if not chosen:
        raise FeebError(f"no part or kind {name!r}; {did_you_mean(str(name), [*KINDS, *(spec.name for _, spec in registry.parts())])}")
    results: list[CheckResult] = []
    for kind, spec in chosen:
        own: list[CheckResult] = []
        for result in iterate(candidate(kind, spec.full_name, registry), full=full):
            own.append(result)
            if not json and (len(chosen) == 1 or not result.passed):
                print(result, flush=True)
        if not json and len(chosen) > 1:
            failed = sum(not result.passed for result in own)
            outcome = f"{failed} of {plural(len(own), 'check')} FAILED" if failed else f"{plural(len(own), 'check')} ok"
            print(f"{kind}/{own[0].part if own else spec.name}: {outcome}, {sum(result.seconds for result in own):.1f} s", flush=True)
        results += own
    failed = sum(not result.passed for result in results)
    if json:
        _print_json([dataclasses.asdict(result) for result in results])
    else:
        skipped = f", {count} skipped" if (count := sum(bool(r.skipped) for r in results)) else ""
        checks, seconds = plural(len(results), "check"), sum(result.seconds for result in results)
        print(f"{plural(len(chosen), 'part')}, {checks}, {failed} failed{skipped}, {seconds:.0f} seconds")
    return 1 if failed else 0


def _files(plugin: list[str]) -> tuple[Any, ...]:
    from pathlib import Path

    return tuple(Path(p).resolve() for p in plugin)


def _default(field: Any) -> Any:
    value = "required" if field.is_required() else field.get_default(call_default_factory=True)
    return json_module.loads(json_module.dumps(value, default=str))


def _print_json(value: Any) -> None:
    sys.stdout.write(json_module.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print a table, wrapped to the terminal; not wrapped without one."""
    from rich import box
    from rich.table import Table

    from feeb_pipelines.cli.display import console

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(text.replace("[", "\\[") for text in row))
    console().print(table, soft_wrap=False)


COMMANDS = (plan, show, parts, plugins, runs, check)
