"""`feeb run`: run a recipe, or one of its stages and the inputs of that stage."""

from __future__ import annotations

import contextlib
import json as json_module
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Input, Json, Set, Unchecked, WorkspaceOption, stage_and_recipe, with_inputs, with_stage
from feeb_pipelines.cli.tables import hint

if TYPE_CHECKING:
    from feeb_pipelines.cli.display import Display
    from feebcore.artifacts import Workspace
    from feebcore.recipe import Recipe


def run(
    recipe: Annotated[str, Parameter(help="A recipe (YAML file).")],
    stage: Annotated[
        str | None, Parameter(help="Only this stage and its inputs; one that the recipe does not list runs after its stages. May come first.")
    ] = None,
    /,
    *,
    name: Annotated[str | None, Parameter(help="Name of the run. Default: the recipe's.")] = None,
    set: Set = [],  # noqa: B006
    input: Input = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    quick: Annotated[bool, Parameter(help="Use the small-scale settings in the `quick:` section of the recipe.", negative=(), show_default=False)] = False,
    jobs: Annotated[int, Parameter(help="Number of parallel runs of a study (variants, seeds) or sweep.")] = 1,
    in_process: Annotated[bool, Parameter(help="Run in this process without Prefect, for debugging.", negative=(), show_default=False)] = False,
    unchecked: Unchecked = False,
    json: Json = False,
) -> int:
    """Run a recipe: run the missing stages and reuse finished ones.

    The stages run as one Prefect flow, on the server at PREFECT_API_URL or on an embedded server that is started and
    stopped automatically. If interrupted, the same command resumes from the last checkpoint. If everything is finished,
    no server is started.

    Parts that are not built in are checked first, once, in seconds; a part that fails ends the command before anything runs.

    A study whose recipe has `claims:` ends with a page of verdicts. A failed run does not stop the others.

    Examples:
        feeb run experiments/quickstart.yaml
        feeb run experiments/quickstart.yaml pretrain --set pretrain.max_steps=100 --name short
        feeb run experiments/quickstart.yaml --workspace /tmp/try --in-process
        feeb run experiments/notebook-c.yaml --quick --jobs 2
        feeb run experiments/quickstart.yaml sft --input pretrain=smol
    """
    from feeb_pipelines.cli.display import Display
    from feeb_pipelines.flows import BUILT_IN
    from feebcore.artifacts import Workspace
    from feebcore.claims.conclude import command_of, conclude
    from feebcore.errors import FeebError
    from feebcore.recipe import load_study, quick_overrides
    from feebcore.run.contracts import require_checked
    from feebcore.study.executors import InProcess
    from feebcore.study.run import stage_result
    from feebcore.study.variants import run_variants

    only, recipe = stage_and_recipe(recipe, stage)
    if jobs < 1 or (in_process and jobs > 1):
        raise FeebError(f"--jobs {jobs}: at least 1, and 1 with --in-process")
    set = with_inputs(set, input)
    set = [*(quick_overrides(recipe) if quick else []), *set, *([f"name={json_module.dumps(name)}"] if name is not None else [])]
    set = with_stage(only, recipe, set)
    recipes = load_study(recipe, set)
    space = Workspace(workspace)
    stages = [only] if only else None
    started, began = time.monotonic(), time.time()
    display = Display(quiet=json)
    page = None
    if _nothing_to_do(recipes, space, stages):
        results = _reuse(recipes, space, stages, display)
        page = conclude(recipes, results, {}, space, command_of(recipe, set))
    elif in_process:
        with display:
            results, failures = run_variants(recipes, stages, space, display, InProcess(), unchecked)
        page = conclude(recipes, results, failures, space, command_of(recipe, set))
    else:
        require_checked(recipes, stages, space, display, unchecked)  # here too, as a server takes seconds to start
        flow = "pipeline" if only is None else only if only in BUILT_IN else "stage"
        extra = {"stage": only} if flow == "stage" else {}
        results = as_flow(flow, space, display, **extra, recipe=str(recipe), overrides=list(set), jobs=jobs, unchecked=unchecked)
    if page is not None:
        results[recipes[0].name]["claims"] = stage_result(page, page.manifest["finished"] <= began, 0.0)
    if json:
        _print_json(results, space, time.monotonic() - started)
    else:
        display.table(results, time.monotonic() - started)
        _hint(results, recipe)
    return 0


def _hint(results: dict[str, Any], recipe: str) -> None:
    """What one wants to do with what the recipe made."""
    rows = {stage: row for stages in results.values() for stage, row in stages.items()}
    models = [f"{stage}/{Path(row['path']).name}" for stage, row in rows.items() if (Path(row["path"]) / "model").is_dir() and stage != "tokenizer"]
    steps = [f'feeb generate {models[-1]} "PROMPT"'] if models else []
    steps += (
        [f"feeb run {recipe} report   # curves, samples and numbers on one page"] if models and not any("report" in r["metrics"] for r in rows.values()) else []
    )
    hint(*(steps or ["feeb runs"]))


def _nothing_to_do(recipes: Sequence[Recipe], space: Workspace, stages: list[str] | None) -> bool:
    from feebcore.run.plan import plan

    return all(item.status == "reuse" for recipe in recipes for item in plan(recipe, space, stages))


def _reuse(recipes: Sequence[Recipe], space: Workspace, stages: list[str] | None, display: Display) -> dict[str, Any]:
    from feebcore.run.plan import plan, reused_from_another_feeb
    from feebcore.study.run import stage_result

    artifacts = {r.name: {i.stage: i.artifact for i in plan(r, space, stages) if i.artifact} for r in recipes}
    if advice := reused_from_another_feeb(a for run in artifacts.values() for a in run.values()):
        display.note(advice)
    return {name: {stage: stage_result(artifact, True, 0.0) for stage, artifact in run.items()} for name, run in artifacts.items()}


def as_flow(name: str, space: Workspace, display: Display, **parameters: Any) -> Any:
    """Call a flow. Prefect is imported while the server starts; both take seconds on a cold machine."""
    from feeb_pipelines.server import connect, ready

    with connect(space.root, display.note, wait=False, until_exit=True) as connection, _quiet_console(), interruptible():
        from prefect.flow_engine import run_flow
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        from feeb_pipelines.flows import stages
        from feeb_pipelines.flows.tasks import errors, subscribed
        from feeb_pipelines.runs import create_run

        ready(space.root, connection, display.note)
        display.server(connection)
        flow, parameters = getattr(stages, name), {**parameters, "workspace": str(space.root)}
        # without heartbeats a flow run ends a second sooner; its lock shows that it is alive (runs.py)
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), display, subscribed(display):
            run = create_run(flow, parameters, space.root)
            try:
                return run_flow(flow, flow_run=run, parameters=parameters)
            except Exception:
                if run.id in errors:
                    raise errors[run.id] from None
                raise


@contextlib.contextmanager
def _quiet_console() -> Iterator[None]:
    """Prefect's own console lines are for its pages here; FEEB_DEBUG=1 or PREFECT_LOGGING_LEVEL brings them back."""
    if os.environ.get("FEEB_DEBUG") == "1" or "PREFECT_LOGGING_LEVEL" in os.environ:
        yield
        return
    os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
    try:
        yield
    finally:
        del os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"]


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C between stages; stages have their own handlers."""
    import signal

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _print_json(results: dict[str, Any], space: Workspace, seconds: float) -> None:
    report = next((r["path"] + "/" + str(r["metrics"]["report"]) for stages in results.values() for r in stages.values() if "report" in r["metrics"]), None)
    sys.stdout.write(json_module.dumps({"workspace": str(space.root), "seconds": round(seconds, 3), "report": report, "runs": results}, indent=2) + "\n")


run.usage = "Usage: feeb run RECIPE [STAGE] [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (run,)
