"""`feeb compare`: compare recipes over paired seeds, or their scaling laws over paired runs, with a verdict."""

from __future__ import annotations

import json as json_module
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from feeb_pipelines.cli.compare_law import compare_law
from feeb_pipelines.cli.options import Input, Json, Set, Unchecked, WorkspaceOption, with_inputs
from feeb_pipelines.cli.tables import hint, print_table

if TYPE_CHECKING:
    from feeb_pipelines.cli.display import Display
    from feebcore.compare.plan import Settings


def compare(
    *recipes: Annotated[str, Parameter(help="Recipes (YAML files), the baseline first; or one recipe with `variants:`, whose first variant is the baseline.")],
    seeds: Annotated[int, Parameter(help="Number of seeds; every recipe is trained once per seed.")] = 5,
    budget: Annotated[Literal["tokens", "flops", "time"], Parameter(help="Budget to match, taken from the baseline.")] = "tokens",
    effect: Annotated[float, Parameter(help="Smallest effect of interest, in bits per byte.")] = 0.01,
    tune_lr: Annotated[bool, Parameter(help="Tune the learning rate of each recipe in short runs first.", negative="--no-tune-lr")] = True,
    keep_lr: Annotated[
        bool, Parameter(help="Report the learning-rate search, but train with each recipe's own learning rate.", negative=(), show_default=False)
    ] = False,
    curve: Annotated[str, Parameter(help="Extra baseline budgets, as multiples, for the compute multiplier; 'none' skips them.")] = "0.5,2",
    law: Annotated[
        bool,
        Parameter(help="Compare scaling laws: both recipes train the runs of the first one's sweep. Or two finished sweeps.", negative=(), show_default=False),
    ] = False,
    target: Annotated[
        float | None, Parameter(help="With --law: training FLOPs to compare at. Default: the sweep's target, else the dearest run.", show_default=False)
    ] = None,
    name: Annotated[str, Parameter(help="Name of the comparison. Default: the names of the recipes.", show_default=False)] = "",
    set: Set = [],  # noqa: B006
    input: Input = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    quick: Annotated[bool, Parameter(help="Use the small-scale settings in the `quick:` section of each recipe.", negative=(), show_default=False)] = False,
    jobs: Annotated[int, Parameter(help="Number of parallel runs.")] = 1,
    plan: Annotated[bool, Parameter(help="List the runs and which of them are reused, without training.", negative=(), show_default=False)] = False,
    in_process: Annotated[
        bool, Parameter(help="Run everything in this process, for debugging or for many very small runs.", negative=(), show_default=False)
    ] = False,
    unchecked: Unchecked = False,
    json: Json = False,
) -> int:
    """Train recipes with the same seeds at a matched budget and test which one is better.

    The recipes must share data and tokenizer; --set applies to all of them. Every run is an artifact of stage pretrain,
    so finished runs are reused and an interrupted comparison resumes. The verdict is based on the paired 95% confidence
    interval: better, worse, equivalent within a margin, or inconclusive, then with the number of seeds needed. Parts that are
    not built in are checked first: an attention that sees the future would win.

    With --law the recipes have a stage sweep, with the same planner and seeds. Both train the runs that the planner chooses for the first;
    their paired ratios tell how much better the second is at --target, with an interval, and how much compute that is worth.
    Names of two finished sweeps compare what is trained already.

    Examples:
        feeb compare baseline.yaml idea.yaml
        feeb compare baseline.yaml idea.yaml other.yaml --budget flops --seeds 8 --effect 0.005
        feeb compare baseline.yaml baseline.yaml --no-tune-lr
        feeb compare experiments/k-heads.yaml --quick --budget flops
        feeb compare --law baseline.yaml idea.yaml --target 1e15
    """
    from feeb_pipelines.cli.display import Display
    from feeb_pipelines.cli.inspection import print_plan
    from feeb_pipelines.cli.run import as_flow, interruptible
    from feebcore.artifacts import Workspace, read_artifact
    from feebcore.compare.plan import STAGE, load_candidates
    from feebcore.compare.planned import finished_comparison, planned_runs
    from feebcore.compare.run import compare as run_comparison
    from feebcore.errors import FeebError
    from feebcore.files import read_json
    from feebcore.run.contracts import require_checked
    from feebcore.run.plan import reused_from_another_feeb
    from feebcore.study.executors import InProcess, executing

    if jobs < 1 or (in_process and jobs > 1):
        raise FeebError(f"--jobs {jobs}: at least 1, and 1 with --in-process")
    settings = _settings(
        seeds=seeds, budget=budget, effect=effect, tune_lr="report" if keep_lr else "best" if tune_lr else "off", curve=_factors(curve), name=name
    )
    overrides, space = with_inputs(set, input), Workspace(workspace)
    started = time.monotonic()
    display = Display(quiet=json)
    if law:
        own = {"--seeds": seeds != 5, "--budget": budget != "tokens", "--effect": effect != 0.01, "--curve": curve != "0.5,2"}
        if unused := [option for option, given in (own | {"--no-tune-lr": not tune_lr, "--keep-lr": keep_lr}).items() if given]:
            raise FeebError(f"{', '.join(unused)}: not with --law, which trains the runs of the sweep's planner; leave it out")
        options: dict[str, Any] = {"jobs": jobs, "plan": plan, "in_process": in_process, "unchecked": unchecked, "json": json}
        return compare_law(recipes, target, name, overrides, space, quick=quick, **options)
    if target is not None:
        raise FeebError("--target is for --law: add it, or leave out --target")
    chosen, variants, command = load_candidates(recipes, settings, overrides, quick)
    if plan:
        print_plan(planned_runs(variants, chosen, space), json)
        return 0
    if (finished := finished_comparison(variants, chosen, space)) is not None:
        artifact = finished
        if advice := reused_from_another_feeb([finished]):
            display.note(advice)
    elif in_process:
        with display, interruptible(), executing(InProcess()):
            artifact = run_comparison(variants, chosen, space, display, command, unchecked)
    else:
        require_checked(variants, [STAGE], space, display, unchecked)  # here too, as a server takes seconds to start
        parameters = {"recipes": [str(r) for r in recipes], "settings": settings.model_dump(mode="json"), "overrides": overrides, "quick": quick}
        made = read_artifact(Path(as_flow("compare", space, display, **parameters, jobs=jobs, unchecked=unchecked)["path"]))
        assert made is not None
        artifact = made
    result = read_json(artifact.file("result.json"))
    seconds = time.monotonic() - started
    if json:
        sys.stdout.write(json_module.dumps({"path": str(artifact.path), "seconds": round(seconds, 3), **result}, indent=2) + "\n")
    else:
        _show(result, str(artifact.path), display, artifact.manifest["finished"] < time.time() - seconds)
    return 0


def _factors(text: str) -> tuple[float, ...]:
    from feebcore.errors import FeebError

    try:
        return () if text.strip() in ("", "none") else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FeebError(f"--curve {text!r}: write factors of the baseline's budget, as 0.5,2, or none") from None


def _settings(**options: Any) -> Settings:
    from pydantic import ValidationError

    from feebcore.compare.plan import Settings
    from feebcore.errors import FeebError

    try:
        return Settings(**options)
    except ValidationError as error:
        problems = [f"--{'.'.join(map(str, e['loc'][:1]))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors(include_url=False)]
        raise FeebError("\n".join(problems)) from None


def _show(result: Mapping[str, Any], path: str, display: Display, reused: bool) -> None:
    columns = ("recipe", "bits per byte", "Δ vs. baseline", "95% CI", "p", "compute multiplier", "tokens/s", "memory", "steps", "LR factor", "diverged")
    variants = {v["name"]: v for v in result["variants"]}
    rows = [_row(candidate, variants.get(candidate["name"])) for candidate in result["recipes"]]
    print_table(columns, rows, drop=("memory", "LR factor", "tokens/s", "steps", "diverged", "compute multiplier", "p"))
    show_verdict(result, path, display, reused)


def show_verdict(result: Mapping[str, Any], path: str, display: Display, reused: bool) -> None:
    """Sentences and notes of a comparison, and where its page is."""
    out = display.console
    for sentence in result["verdict"]:
        out.print(sentence, style="bold", markup=False)
    for note in result["notes"]:
        out.print(note, style="dim", markup=False)
    if reused:
        out.print("nothing to do: the comparison is already finished")
    out.print(f"page: {path}/page.html", markup=False)
    hint(f"open {path}/page.html")


def _row(candidate: Mapping[str, Any], variant: Mapping[str, Any] | None) -> list[str]:
    from feeb_pipelines.summary import number
    from feebcore.compare.report import numbers_of
    from feebcore.report.style import byte_size

    speed = "" if candidate["tokens_per_second"] is None else number(candidate["tokens_per_second"])
    memory = "" if candidate["memory_bytes"] is None else byte_size(candidate["memory_bytes"])
    runs = f"{len(candidate['diverged'])} of {len(candidate['seeds'])}"
    return [candidate["name"], *numbers_of(candidate, variant), speed, memory, number(candidate["steps"]), f"{candidate['lr']['factor']:g} x", runs]


compare.usage = "Usage: feeb compare BASELINE RECIPE… [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (compare,)
