"""`feeb branch`: continue from any checkpoint of a training run with different settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Set, WorkspaceOption

if TYPE_CHECKING:
    from feebcore.artifacts import Workspace


def branch(
    source: Annotated[str, Parameter(help="Run: its name, the start of its fingerprint, or its folder.")],
    /,
    *,
    step: Annotated[int, Parameter(help="Checkpoint step to continue from; 0 is the latest.")] = 0,
    name: Annotated[str | None, Parameter(help="Name of the new run. Default: the run's name and the step.")] = None,
    set: Set = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    in_process: Annotated[bool, Parameter(help="Run in this process without Prefect, for debugging.", negative=(), show_default=False)] = False,
    json: Json = False,
) -> int:
    """Continue training from a checkpoint of another run: decay from a stable phase, or train a finished run for longer.

    Weights, optimizer state and data position are restored from the checkpoint; everything else comes from the run's
    recipe, as changed by --set. The result is a new artifact. Set `keep_every` in the recipe of the original run to keep
    checkpoints to branch from.

    Examples:
        feeb branch wsd-stable --step 2000 --set pretrain.schedule.name=wsd --set pretrain.max_steps=2500
        feeb branch data/pretrain/quickstart-0123456789ab --set pretrain.max_steps=800
    """
    from feeb_pipelines.cli.run import run
    from feebcore.artifacts import Workspace
    from feebcore.errors import FeebError
    from feebcore.train.config import checkpoint_of

    folder = find(Workspace(workspace), source)
    checkpoint = checkpoint_of(folder, step)
    if checkpoint is None:
        there = [str(int(p.name.rpartition("-")[2])) for p in sorted((folder / "checkpoints").glob("step-*"))]
        raise FeebError(f"{folder} has no checkpoint" + (f" of step {step}; there are {', '.join(there)} (keep_every keeps more)" if there else ""))
    at, stage = int(checkpoint.name.rpartition("-")[2]), folder.parent.name
    branch_name = name or f"{folder.name.rpartition('-')[0]}-from-{at}"
    changes = [f"name={branch_name}", f"{stage}.init_from=", f"{stage}.branch_from={folder}", f"{stage}.branch_step={at}"]
    return run(str(folder / "recipe.json"), stage, set=[*changes, *set], workspace=workspace, in_process=in_process, json=json)


def find(space: Workspace, source: str) -> Path:
    """The folder of a run that can be branched, finished or not: of a stage with the option `branch_from`. Raises FeebError
    when none or several are meant."""
    from feebcore.errors import FeebError
    from feebcore.registry import get_registry

    if (Path(source) / "recipe.json").is_file():
        return Path(source).resolve()
    stages = [spec.name for _, spec in get_registry().parts("stages") if "branch_from" in spec.config.model_fields]
    folders = sorted(p.parent for stage in stages for p in (space.root / stage).glob("*/recipe.json"))
    matches = [f for f in folders if source in (f.name, f.name.rpartition("-")[0]) or f.name.rpartition("-")[2].startswith(source)]
    if len(matches) == 1:
        return matches[0].resolve()
    if matches:
        raise FeebError(f"{source!r} is ambiguous: {', '.join(f.name for f in matches)}; use a fingerprint")
    raise FeebError(f"no training run {source!r} in {space.root}" + (f"; there are {', '.join(f.name for f in folders[:10])}" if folders else ""))


branch.usage = "Usage: feeb branch RUN [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (branch,)
