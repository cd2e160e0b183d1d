"""`feeb compare --law`: two scaling laws through paired runs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feeb_pipelines.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from feeb_pipelines.cli.display import Display
    from feebcore.artifacts import Artifact, Workspace
    from feebcore.compare.law import LawSettings


def compare_law(
    references: Sequence[str],
    target: float | None,
    name: str,
    overrides: list[str],
    space: Workspace,
    *,
    quick: bool,
    jobs: int,
    plan: bool,
    in_process: bool,
    unchecked: bool,
    json: bool,
) -> int:
    """references: two recipes, one with two variants, or two finished sweeps; the baseline first."""
    from feeb_pipelines.cli.display import Display
    from feebcore.errors import FeebError
    from feebcore.files import read_json

    started = time.monotonic()
    settings, display = _settings(target, name), Display(quiet=json)
    kinds = {Path(reference).suffix in (".yaml", ".yml") or Path(reference).is_file() for reference in references}
    if len(kinds) > 1:
        raise FeebError(f"{' '.join(references)}: give two recipes (YAML files), or the names of two finished sweeps")
    if kinds == {False}:
        if unused := [o for o, given in (("--set", overrides), ("--quick", quick), ("--plan", plan)) if given]:
            raise FeebError(f"{', '.join(unused)}: two finished sweeps train nothing; leave it out, or give the recipes")
        artifact = _of_sweeps(references, settings, space, display)
    else:
        if plan:
            _plan(references, settings, overrides, quick, space, jobs, json)
            return 0
        artifact = _of_recipes(references, settings, overrides, quick, space, display, jobs, in_process, unchecked)
    result, seconds = read_json(artifact.file("result.json")), time.monotonic() - started
    if json:
        print_json({"path": str(artifact.path), "seconds": round(seconds, 3), **result})
    else:
        _show(result, artifact, display, artifact.manifest["finished"] < time.time() - seconds)
    return 0


def _settings(target: float | None, name: str) -> LawSettings:
    from pydantic import ValidationError

    from feebcore.compare.law import LawSettings
    from feebcore.errors import FeebError

    if target is not None and not (math.isfinite(target) and target > 0):
        raise FeebError(f"--target {target:g}: a number of training FLOPs, above 0")
    try:
        return LawSettings(target=target or 0.0, name=name)
    except ValidationError as error:
        raise FeebError(f"--name: {error.errors(include_url=False)[0]['msg'].removeprefix('Value error, ')}") from None


def _of_sweeps(references: Sequence[str], settings: LawSettings, space: Workspace, display: Display) -> Artifact:
    from feeb_pipelines.cli.sweep import finished_sweep
    from feebcore.compare.law import command_of, compare_sweeps

    folders = [finished_sweep(reference, space.root) for reference in references]
    with display:
        return compare_sweeps(folders, settings, space, display, command_of(references, settings, [], False))


def _of_recipes(
    references: Sequence[str],
    settings: LawSettings,
    overrides: list[str],
    quick: bool,
    space: Workspace,
    display: Display,
    jobs: int,
    in_process: bool,
    unchecked: bool,
) -> Artifact:
    from feeb_pipelines.cli.run import as_flow, interruptible
    from feebcore.artifacts import read_artifact
    from feebcore.compare.law import command_of, compare_laws, finished_law_comparison
    from feebcore.compare.plan import load_recipes
    from feebcore.run.contracts import require_checked
    from feebcore.run.plan import reused_from_another_feeb
    from feebcore.scaling.use import sweep_key
    from feebcore.study.executors import InProcess, executing

    recipes = load_recipes(references, overrides, quick)
    if (finished := finished_law_comparison(recipes, settings, space)) is not None:
        if advice := reused_from_another_feeb([finished]):
            display.note(advice)
        return finished
    if in_process:
        with display, interruptible(), executing(InProcess()):
            return compare_laws(recipes, settings, space, display, command_of(references, settings, overrides, quick), unchecked)
    require_checked(recipes, [sweep_key(recipes[0])], space, display, unchecked)  # here too, as a server takes seconds to start
    parameters = {"recipes": list(references), "settings": settings.model_dump(mode="json"), "overrides": overrides, "quick": quick, "law": True}
    made = read_artifact(Path(as_flow("compare", space, display, **parameters, jobs=jobs, unchecked=unchecked)["path"]))
    assert made is not None
    return made


def _plan(references: Sequence[str], settings: LawSettings, overrides: list[str], quick: bool, space: Workspace, jobs: int, json: bool) -> None:
    from feeb_pipelines.cli.display import duration
    from feebcore.compare.law import planned_pairs
    from feebcore.compare.plan import load_recipes

    rows = planned_pairs(load_recipes(references, overrides, quick), settings, space, jobs)
    runs = [run for row in rows for run in zip(row["flops"], row["seconds"], row["status"], strict=True)]
    left = [(flops, seconds) for flops, seconds, status in runs if status != "reuse"]
    flops, seconds = sum(flops for flops, _ in left), sum(seconds for _, seconds in left) / jobs
    if json:
        print_json({"runs": rows, "to_train": len(left), "flops": flops, "seconds": seconds})
        return
    words = {"run": "run", "reuse": "reuse", "continue": "resume"}
    table = [
        (
            row["run"],
            *(f"{n:.3g}" for n in row["N"]),
            f"{row['D']:.3g}",
            f"{row['steps']:,}",
            *(f"{c:.3g}" for c in row["flops"]),
            " / ".join(words[status] for status in row["status"]),
        )
        for row in rows
    ]
    print_table(("run", "N", "N, second", "D", "steps", "FLOPs", "FLOPs, second", "action"), table, drop=("steps", "N, second", "FLOPs, second"))
    expected = f", about {duration(seconds)} with {jobs} at once" if left else ""
    print(f"{len(rows)} pairs; to train: {len(left)} runs, {flops:.4g} FLOPs{expected}")


def _show(result: Mapping[str, Any], artifact: Artifact, display: Display, reused: bool) -> None:
    from feeb_pipelines.cli.compare import show_verdict
    from feebcore.compare.law_report import columns, rows

    if result["comparison"]:
        names = columns(result)
        print_table(names, rows(result), drop=(*names[:-3:-1], *names[2:0:-1]))
    show_verdict(result, str(artifact.path), display, reused)
