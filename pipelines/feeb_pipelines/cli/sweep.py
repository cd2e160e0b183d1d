"""`feeb sweep`: plan, run, status, report, recommend; fit is in sweep_fit.py."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Input, Json, Set, Unchecked, WorkspaceOption, with_inputs, with_stage
from feeb_pipelines.cli.sweep_fit import fit
from feeb_pipelines.cli.tables import hint, print_json, print_table

if TYPE_CHECKING:
    from feebcore.api import Run
    from feebcore.artifacts import Workspace
    from feebcore.recipe import Recipe

LADDERS = ("ladder", "parametric_grid")
"""Planners with runs of their own, which --budget limits; it replaces others by adaptive."""

RecipeFile = Annotated[str, Parameter(help="A recipe (YAML file) with a stage sweep.")]
Budget = Annotated[
    float | None,
    Parameter(help="Training FLOPs of all runs together: uses planner adaptive, but for a ladder or a parametric_grid, which must fit.", show_default=False),
]
Target = Annotated[float | None, Parameter(help="Training FLOPs to forecast: the best size and its loss.", show_default=False)]
Hours = Annotated[float | None, Parameter(help="The budget in hours, converted by the speed of this machine.", show_default=False)]
Jobs = Annotated[int, Parameter(help="Number of parallel runs.")]
RunOption = Annotated[str, Parameter(help="A sweep: NAME, sweep/NAME, the start of its fingerprint, or its folder.")]


def plan(
    recipe: RecipeFile,
    /,
    *,
    budget: Budget = None,
    target: Target = None,
    hours: Hours = None,
    price: Annotated[float | None, Parameter(help="Price of an hour of the machine; the table then shows the cost.", show_default=False)] = None,
    jobs: Jobs = 1,
    set: Set = [],  # noqa: B006
    input: Input = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Show the runs of a sweep with their costs, without training anything.

    Planner adaptive places each rung by what the rungs before it have shown, so its later rows are expectations. Times come from
    finished pretraining runs of the same architecture in the workspace; where there are none, from a few steps of three of the runs.

    Examples:
        feeb sweep plan experiments/sweep-small.yaml --budget 4.5e13 --target 1.5e14
        feeb sweep plan experiments/sweep-small.yaml --hours 2 --jobs 2
    """
    from feeb_pipelines.cli.display import duration
    from feebcore.artifacts import Workspace
    from feebcore.compare.speed import speed_of
    from feebcore.scaling.use import before_it_runs, planned, section_of, total

    space = Workspace(workspace)
    loaded, _ = _load(recipe, budget, target, hours, jobs, set, input, space)
    planner, situation = before_it_runs(loaded, space)
    section = section_of(loaded)
    rows = planned(planner, situation, speed_of(loaded, space, planner, situation, jobs))
    sums = total(rows)
    seconds = sums["seconds"] / jobs
    if json:
        flops = {"flops": sums["flops"], "saved_flops": sums["saved_flops"]}
        print_json({"runs": [row.to_dict() for row in rows], **flops, "seconds": seconds, "target": section.target or None})
        return
    columns = ("round", "run", "N", "D", "steps", "FLOPs", "time", "predicted", "branches")
    table = [
        (
            str(row.cell.round),
            row.cell.name,
            f"{row.N:.3g}",
            f"{row.D:.3g}",
            f"{row.steps:,}",
            f"{row.cell.flops:.3g}",
            duration(row.seconds),
            "before it starts" if row.cell.predicted else "",
            f"from step {row.cell.shared_steps:,} of {row.cell.original}" if row.cell.original else "",
        )
        for row in rows
    ]
    print_table(columns, table, drop=("round", "steps"))
    cost = f", {seconds / 3600 * price:.2f} at {price:g} an hour" if price else ""
    print(f"{len(rows)} runs, {sums['flops']:.4g} FLOPs, about {duration(seconds)} with {jobs} at once{cost}")
    if sums["saved_flops"]:
        print(_saved(sums["saved_flops"], sums["flops"]))
    if section.target and planner.varies == "sizes":
        dearest = max(row.cell.flops for row in rows)
        print(f"forecast at {section.target:.3g} FLOPs, {section.target / dearest:.3g} times the dearest run")
    hint(f"feeb sweep run {recipe}" + "".join(f" --{k} {v:g}" for k, v in (("budget", budget), ("target", target), ("hours", hours)) if v))


def run(
    recipe: RecipeFile,
    /,
    *,
    budget: Budget = None,
    target: Target = None,
    hours: Hours = None,
    jobs: Jobs = 1,
    dry_run: Annotated[bool, Parameter(help="Only show the plan, as feeb sweep plan does.", negative=(), show_default=False)] = False,
    set: Set = [],  # noqa: B006
    input: Input = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    in_process: Annotated[bool, Parameter(help="Run in this process without Prefect, for debugging.", negative=(), show_default=False)] = False,
    unchecked: Unchecked = False,
    json: Json = False,
) -> int:
    """Run a sweep: its stages before it, its runs, the law and the forecast.

    The same as `feeb run RECIPE sweep` with the budget and the target set. If interrupted, the same command continues.

    Examples:
        feeb sweep run experiments/sweep-small.yaml --budget 4.5e13 --target 1.5e14 --jobs 2
    """
    from feeb_pipelines.cli.run import run as run_recipe
    from feebcore.artifacts import Workspace

    if dry_run:
        plan(recipe, budget=budget, target=target, hours=hours, jobs=jobs, set=set, input=input, workspace=workspace, json=json)
        return 0
    _, overrides = _load(recipe, budget, target, hours, jobs, set, input, Workspace(workspace))
    return run_recipe(recipe, "sweep", set=overrides, workspace=workspace, jobs=jobs, in_process=in_process, unchecked=unchecked, json=json)


def status(sweep: RunOption, /, *, workspace: WorkspaceOption = None, json: Json = False) -> None:
    """List the runs of a sweep, finished or not: status, loss, and what was predicted before each started.

    Examples:
        feeb sweep status sweep-small
    """
    from feebcore.scaling.use import status as status_of

    found = status_of(_find(sweep, workspace).path)
    if json:
        print_json({"path": found.path, "finished": found.finished, "runs": found.runs})
        return
    rows = [
        (
            row["name"],
            row["status"],
            f"{row['flops']:.3g}",
            _number(row["loss"]),
            _number(row["predicted"]),
            f"{row['low']:.4f} to {row['high']:.4f}" if row["low"] is not None else "",
            f"{100 * row['error']:+.2f}%" if row["error"] is not None else row["reason"].partition("\n")[0],
        )
        for row in found.runs
    ]
    print_table(("run", "status", "FLOPs", "loss", "predicted", "95% interval", "error"), rows, prose=("error",), drop=("FLOPs", "95% interval"))
    print(f"{found.finished} of {len(found.runs)} runs finished; {found.path}")


def report(sweep: RunOption, /, *, workspace: WorkspaceOption = None, json: Json = False) -> None:
    """Print what a sweep found, and the path of its page: law, predictions and outcomes, rollouts, learning rates, how it was made, what is not known.

    The page shows the same with figures. --json prints every number of it.

    Examples:
        feeb sweep report sweep-small
    """
    from feebcore.report.sweep_page import PAGE
    from feebcore.report.sweep_sections import remarks, sections, tables

    folder = _find(sweep, workspace).path
    found = sections(folder)
    page = folder / PAGE
    if json:
        print_json({"page": str(page) if page.is_file() else None, **found})
        return
    print(found["headline"]["sentence"])
    said, shown = remarks(found), tables(found)
    if found["mixture"]:
        _print_mixture(found["mixture"])
    for heading, remark, names in PARTS_OF_REPORT:
        if not (said.get(remark) or any(name in shown for name in names)):
            continue
        print(f"\n{heading}")
        for sentence in said.get(remark, ()):
            print(sentence)
        for number, name in enumerate(name for name in names if name in shown):
            if number:
                print()
            print_table(shown[name].columns, shown[name].rows, prose=("note", "answer"))
    if found["saved_flops"]:
        print(_saved(found["saved_flops"], found["flops"]))
    print("\nWhat is not known")
    for row in found["unknown"]:
        print(f"{row['code']}: {row['text']}")
    if page.is_file():
        print(f"\npage: {page}")
    hint(f"feeb sweep recommend {sweep} --flops FLOPS")


PARTS_OF_REPORT = (
    ("IsoFLOP curves", "isoflop", ("minima",)),
    ("Law", "law", ("parameters", "methods")),
    ("Predicted before it ran", "predictions", ("predictions",)),
    ("Rollouts", "rollouts", ("rollouts",)),
    ("Learning-rate probe", "lr_probe", ("lr_probe", "learning_rates")),
    ("Exponents by parameter count", "parameter_counts", ("parameter_counts",)),
    ("How it was made", "checklist", ("checklist",)),
)
"""Of what `feeb sweep report` prints: the heading, the remarks under it and the tables."""


def recommend(
    sweep: RunOption,
    /,
    *,
    flops: Annotated[float | None, Parameter(help="Training FLOPs of the run. Default: the sweep's target.", show_default=False)] = None,
    out: Annotated[Path | None, Parameter(help="Recipe to write. Default: only print it.", show_default=False)] = None,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Write the recipe of the best run for a number of FLOPs, with the forecast of its loss.

    Size by the law and the measured cost of a token, learning rates by the sweep's probe. Of a sweep over mixtures: the mixture of least loss.

    Examples:
        feeb sweep recommend sweep-small --flops 1e14 --out large.yaml
    """
    from feebcore.artifacts import read_artifact
    from feebcore.errors import FeebError
    from feebcore.files import read_json, write_atomic
    from feebcore.scaling.use import recommend as recommended

    folder = finished_sweep(sweep, workspace)
    artifact = read_artifact(folder)
    assert artifact is not None
    document = read_json(folder / "law.json")
    run_flops = flops or (document.get("forecast") or document.get("mixture") or {}).get("flops")
    if not run_flops:
        raise FeebError("this sweep has no target; say for how many training FLOPs, as in --flops 1e14")
    recipe, forecast = recommended(artifact, run_flops)
    if out is not None:
        write_atomic(out, json_module.dumps(recipe, indent=2) + "\n")
    if json:
        print_json({"recipe": recipe, "forecast": forecast, "out": str(out) if out else None})
        return
    interval = f" ({forecast['low']:.4f} to {forecast['high']:.4f})" if forecast["low"] == forecast["low"] else ""
    changes = ", ".join(f"{k} {v}" for k, v in forecast["overrides"].items() if k != "data_order")  # a table below says the shares
    print(f"{forecast['flops']:.3g} FLOPs: {changes}")
    known = "no forecast of its loss" if forecast["loss"] != forecast["loss"] else f"forecast {forecast['loss']:.4f} nats per token{interval}"
    print(f"N {forecast['N']:.4g}, D {forecast['D']:.4g}; {known}")
    if mixture := forecast.get("mixture"):
        _print_mixture(mixture)
    for flag in forecast["flags"]:
        print(f"caveat: {flag}")
    hint(f"feeb run {out}" if out else f"feeb sweep recommend {sweep} --flops {run_flops:g} --out large.yaml")


def _print_mixture(mixture: Mapping[str, Any]) -> None:
    """The recommended shares, and what they gain. mixture: of law.json."""
    from feebcore.report.sweep_sections import mixture_remarks, mixture_table

    shares = mixture_table(mixture)
    print(f"\nrecommended mixture for {mixture['flops']:.3g} FLOPs ({mixture['tokens']:.3g} tokens), regression {mixture['regression']}")
    print_table(shares.columns, shares.rows)
    for sentence in mixture_remarks(mixture):
        print(sentence)


def _load(
    recipe: str, budget: float | None, target: float | None, hours: float | None, jobs: int, set: Sequence[str], input: Sequence[str], space: Workspace
) -> tuple[Recipe, list[str]]:
    """The recipe with the planner's budget and the target, and the overrides that say so."""
    from feebcore.compare.speed import budget_for_hours
    from feebcore.errors import FeebError
    from feebcore.recipe import load
    from feebcore.recipe_yaml import read_merged

    for name, value in (("budget", budget), ("target", target), ("hours", hours), ("jobs", jobs)):
        if value is not None and not value > 0:
            raise FeebError(f"--{name} {value:g}: must be above 0")
    if budget and hours:
        raise FeebError("give --budget or --hours, not both")
    overrides = with_stage("sweep", recipe, with_inputs(set, input))
    planner = (read_merged(Path(recipe), overrides)[0].get("sweep") or {}).get("planner")
    chosen = str(planner.get("name") if isinstance(planner, dict) else planner).removeprefix("feeb/")
    adaptive = chosen == "adaptive"
    own = [f"sweep.target={target!r}"] if target else []
    if hours:
        budget = budget_for_hours(load(recipe, overrides if adaptive else [_planner(1e15), *overrides]), space, hours, jobs)
    if budget:
        own.append(f"sweep.planner.budget={budget!r}" if isinstance(planner, dict) and (adaptive or chosen in LADDERS) else _planner(budget))
    overrides = [*own, *overrides]  # so that --set can add to the planner
    return load(recipe, overrides), overrides


def _planner(budget: float) -> str:
    return f"sweep.planner={json_module.dumps({'name': 'adaptive', 'budget': budget})}"


def _find(sweep: str, workspace: Path | None) -> Run:
    from feebcore.api import open_run
    from feebcore.errors import FeebError

    found = open_run(sweep if "/" in sweep else f"sweep/{sweep}", workspace)
    if not (found.path / "ledger.sqlite").is_file():
        raise FeebError(f"{found.path} is not a sweep (it has no ledger.sqlite)")
    return found


def finished_sweep(sweep: str, workspace: Path | None) -> Path:
    from feebcore.errors import FeebError

    folder = _find(sweep, workspace).path
    if not (folder / "manifest.json").is_file():
        raise FeebError(f"{folder} is not finished; `feeb sweep status {sweep}` shows where it stands")
    return folder


def _saved(saved: float, trained: float) -> str:
    return f"branches save {saved:.3g} FLOPs, {100 * saved / (saved + trained):.0f}% of what the runs would take one by one"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"


COMMANDS = (plan, run, status, report, recommend, fit)
