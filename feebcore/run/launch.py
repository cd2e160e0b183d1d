"""A training stage without Prefect, on one machine or many: `python -m feebcore.run.launch RECIPE [--stage pretrain]`.

Alone, it builds the stage and what that needs, and starts the ranks of `parallel` itself. Under torchrun (or anything
that sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT) each process is one rank, on any number of machines
that share the workspace's file system:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint $HOST:29500 -m feebcore.run.launch RECIPE

Rank 0 holds the artifact's lock, writes its files and commits it. What the stage needs must be finished before.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, Workspace
from feebcore.errors import FeebError, Interrupted, RecipeError, plural
from feebcore.files import escape_unencodable
from feebcore.recipe import Recipe, load_study
from feebcore.run.build import build, run_all, run_stage
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import plan
from feebcore.run.worker import RankOutput, end_when

POLL = 0.5
"""Seconds between checks that the parent still runs."""


def one_run(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe at `path`. Raises RecipeError for a study of several runs."""
    recipes = load_study(path, overrides)
    if len(recipes) > 1:
        raise RecipeError(f"{path}: a study of {plural(len(recipes), 'run')}, and this trains one; use `feeb run`, or add --set variants={{}} --set seeds=[0]")
    return recipes[0]


def launch(recipe: Recipe, stage: str, workspace: Workspace) -> Path:
    """Build the stage, as one rank of several where the environment says so. Returns the artifact's folder."""
    if "RANK" not in os.environ:
        return run_all(recipe, workspace, [stage], _print_log, in_process=False)[stage].path
    parent = os.getppid()
    end_when(lambda: _wait_until_orphaned(parent), and_group=False)
    return _as_rank(recipe, stage, workspace)


def _as_rank(recipe: Recipe, stage: str, workspace: Workspace) -> Path:
    from feebcore.model.precision import resolve_device
    from feebcore.train.config import TrainSection
    from feebcore.train.parallel import make_parallel

    section = recipe.stages[stage].section if stage in recipe.stages else None
    if section is not None and not isinstance(section, TrainSection):
        raise FeebError(f"stage {stage} takes no `parallel`: it runs in one process, start it with `feeb run {stage} {recipe.path}`")
    built = _finished_inputs(recipe, stage, workspace)
    parallel = make_parallel(section, resolve_device(section.device))  # type: ignore[arg-type, union-attr]
    channel = parallel.channel()
    if parallel.is_main:
        place: list[Path] = []

        def begin(folder: Path) -> None:
            place.append(folder)
            channel.all_gather_text(str(folder))

        artifact = build(recipe, stage, workspace, built, _print_log, in_process=True, before=begin)
        if not place:
            channel.all_gather_text("")
        return artifact.path
    folder = channel.all_gather_text("")[0]
    if not folder:
        return Path()
    out: StageOutput = RankOutput(Path(folder))
    inputs = finished_inputs(recipe, stage, workspace, built)
    run_stage(recipe, stage, inputs, out)
    return Path(folder)


def _finished_inputs(recipe: Recipe, stage: str, workspace: Workspace) -> dict[str, Artifact]:
    items = plan(recipe, workspace, [stage])
    for item in items:
        if item.stage != stage and item.artifact is None:
            raise FeebError(f"stage {item.stage}, which {stage} needs, is not finished in {workspace.root}; first run `feeb run {item.stage} {recipe.path}`")
    return {item.stage: item.artifact for item in items if item.artifact is not None}


def _wait_until_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)


def _print_log(row: Mapping[str, Any]) -> None:
    if row["kind"] == "log":
        print(row["text"], flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Its exit status is 130 after a stop, 1 after an error that the user can mend."""
    from torch.distributed.elastic.multiprocessing.errors import record  # torchrun then reports the error of the rank that failed first

    parser = argparse.ArgumentParser(prog="python -m feebcore.run.launch", description="Run a training stage without Prefect, also as a rank under torchrun.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--stage", default="pretrain")
    parser.add_argument("--workspace", type=Path, help="default: FEEB_WORKSPACE, or data/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe, as in pretrain.max_steps=100")
    options = parser.parse_args(arguments)
    escape_unencodable()
    try:
        record(launch)(one_run(options.recipe, options.set), options.stage, Workspace(options.workspace))
        return
    except Interrupted as error:
        status = 130
        print(error, file=sys.stderr)
    except FeebError as error:
        status = 1
        print(f"error: {error}", file=sys.stderr)
    except Exception:
        status = 1
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: threads may wait for ranks that wait for this one


if __name__ == "__main__":
    main()
