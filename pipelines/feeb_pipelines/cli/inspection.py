"""`feeb plan`, `check`: what a recipe would do, and whether parts keep their contracts."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Input, Json, Plugin, Set, WorkspaceOption, stage_and_recipe, with_inputs, with_stage
from feeb_pipelines.cli.parts import plugin_files
from feeb_pipelines.cli.tables import hint, print_json, print_table

if TYPE_CHECKING:
    from feebcore.artifacts import Artifact


def plan(
    recipe: Annotated[str, Parameter(help="A recipe (YAML file).")],
    stage: Annotated[str | None, Parameter(help="Only this stage and its inputs. May come first.")] = None,
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
    only, recipe = stage_and_recipe(recipe, stage)
    stages = [only] if only else None
    reused: list[Artifact] = []
    recipes = load_study(recipe, with_stage(only, recipe, with_inputs(set, input)))
    for run in recipes:
        items = plan_stages(run, space, stages)
        reused += [item.artifact for item in items if item.artifact is not None]
        built = {item.stage: item.artifact for item in items if item.artifact is not None}
        for item in explain_differences(items, space, run.name):
            if isinstance(run.stages[item.stage].section, SweepConfig) and item.artifact is None:
                from feebcore.scaling.sweep import planned_cells

                records = read_records(item.path / "ledger.sqlite") if item.path else []
                rows += noted(planned_cells(run, item.stage, space, built), records)
            rows.append(row_of(run.name, item))
    if len(recipes) > 1:
        ledger = ledger_of(space, *study_name(propose(recipes, stages), space))
        rows = noted(rows, read_records(ledger))
    print_plan(rows, json)
    if not json and any(row["status"] != "reuse" for row in rows):
        hint(" ".join(["feeb run", recipe, *([only] if only else [])]))
    if advice := reused_from_another_feeb(reused):
        print(advice, file=sys.stderr)


def print_plan(rows: Sequence[dict[str, Any]], json: bool) -> None:
    """Rows of feebcore.study.planned as a table, or as JSON."""
    if json:
        return print_json(rows)
    words = {"run": "run", "reuse": "reuse", "continue": "resume", "diverged": "none"}
    print_table(
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
        prose=("reason",),
    )
    return None


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
    registry = get_registry(plugin_files(plugin))
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
        print_json([dataclasses.asdict(result) for result in results])
    else:
        skipped = f", {count} skipped" if (count := sum(bool(r.skipped) for r in results)) else ""
        checks, seconds = plural(len(results), "check"), sum(result.seconds for result in results)
        print(f"{plural(len(chosen), 'part')}, {checks}, {failed} failed{skipped}, {seconds:.0f} seconds")
    return 1 if failed else 0


COMMANDS = (plan, check)
