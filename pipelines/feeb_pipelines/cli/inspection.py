"""`feeb plan`, `check`: what a recipe would do, and whether parts keep their contracts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Input, Json, Plugin, Set, WorkspaceOption, stage_and_recipe, with_inputs, with_stage
from feeb_pipelines.cli.parts import plugin_files
from feeb_pipelines.cli.tables import hint, print_json, print_table


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

    Every run of a study is listed, and every run of a sweep that is not finished. `feeb compare --plan` lists those of a comparison.

    Examples:
        feeb plan experiments/quickstart.yaml --set pretrain.max_steps=100
        feeb plan experiments/quickstart.yaml pretrain --json
    """
    from feebcore.artifacts import Workspace
    from feebcore.recipe import load_study
    from feebcore.run.plan import explain_differences
    from feebcore.run.plan import plan as plan_stages
    from feebcore.scaling.config import SweepConfig
    from feebcore.study.planned import row_of

    space = Workspace(workspace)
    rows: list[dict[str, Any]] = []
    only, recipe = stage_and_recipe(recipe, stage)
    for run in load_study(recipe, with_stage(only, recipe, with_inputs(set, input))):
        items = plan_stages(run, space, [only] if only else None)
        built = {item.stage: item.artifact for item in items if item.artifact is not None}
        for item in explain_differences(items, space, run.name):
            if isinstance(run.stages[item.stage].section, SweepConfig) and item.artifact is None:
                from feebcore.scaling.sweep import planned_cells

                rows += planned_cells(run, item.stage, space, built)
            rows.append(row_of(run.name, item))
    print_plan(rows, json)
    if not json and any(row["status"] != "reuse" for row in rows):
        hint(" ".join(["feeb run", recipe, *([only] if only else [])]))


def print_plan(rows: Sequence[dict[str, Any]], json: bool) -> None:
    """Rows of feebcore.study.planned as a table, or as JSON."""
    if json:
        return print_json(rows)
    words = {"run": "run", "reuse": "reuse", "continue": "resume"}
    print_table(
        ("run", "stage", "action", "reason"),
        [(r["run"], r["stage"], words[r["status"]], "; ".join(r["differs"]) or (r["path"] if r["status"] != "run" else "no matching artifact")) for r in rows],
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
    """Run the contract tests of parts. Exits with status 1 if a check fails.

    Examples:
        feeb check lion --plugin ./lion.py
        feeb check optimizers
        feeb check --all
        feeb check architectures --full
    """
    from feebcore.errors import FeebError
    from feebcore.hookspecs import KINDS
    from feebcore.registry import get_registry
    from feebcore.testing import checks_for
    from feebcore.testing.framework import candidate, iterate

    if (name is None) != all:
        raise FeebError("name one part or kind, or pass --all; `feeb parts` lists them")
    registry = get_registry(plugin_files(plugin))
    chosen = [
        (kind, spec) for kind, spec in registry.parts() if all or name in (kind, spec.name, spec.full_name, f"{kind}/{spec.name}", f"{kind}/{spec.full_name}")
    ]
    if not chosen:
        from feebcore.errors import did_you_mean

        raise FeebError(f"no part or kind {name!r}; {did_you_mean(str(name), [*KINDS, *(spec.name for _, spec in registry.parts())])}")
    results: list[dict[str, Any]] = []
    for kind, spec in chosen:
        if not checks_for(kind):
            if not json:
                print(f"{kind}/{spec.name}: no checks for kind {kind}")
            continue
        for result in iterate(candidate(kind, spec.full_name, registry), full=full):
            results.append(dataclasses.asdict(result))
            if not json:
                print(result, flush=True)
    failed = sum(not r["passed"] for r in results)
    if json:
        print_json(results)
    else:
        print(f"{len(results)} checks, {failed} failed, {sum(r['seconds'] for r in results):.0f} seconds")
    return 1 if failed else 0


COMMANDS = (plan, check)
