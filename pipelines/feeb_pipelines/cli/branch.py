"""`feeb branch`: go on from any checkpoint of a training run, with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Set, WorkspaceOption

if TYPE_CHECKING:
    from feebcore.artifacts import Workspace


def branch(
    source: Annotated[str, Parameter(help="The run: its folder, its name in the workspace, or the begin of its fingerprint.")],
    /,
    *,
    step: Annotated[int, Parameter(help="The checkpoint to go on from; 0: the newest.")] = 0,
    name: Annotated[str | None, Parameter(help="The branch's name; default: the run's name and the step.")] = None,
    set: Set = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    in_process: Annotated[bool, Parameter(help="For a debugger: no Prefect, no subprocess.", negative=(), show_default=False)] = False,
    json: Json = False,
) -> int:
    """Train on from a checkpoint of another run: a decay from a trunk, or more steps for a run that is finished.

    Weights, optimizer state and the place in the data come from the checkpoint; everything else is the run's own recipe
    with what --set changes. The branch is an artifact of its own. `keep_every` in the trunk's recipe says which checkpoints
    stay to branch from.

    Examples:
        feeb branch trunk --step 2000 --set pretrain.schedule.name=wsd --set pretrain.max_steps=2500
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
    return run(stage, str(folder / "recipe.json"), set=[*changes, *set], workspace=workspace, in_process=in_process, json=json)


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
        raise FeebError(f"{source!r} means several runs: {', '.join(f.name for f in matches)}; name one by its fingerprint")
    raise FeebError(f"no training run {source!r} in {space.root}" + (f"; there are {', '.join(f.name for f in folders[:10])}" if folders else ""))


branch.usage = "Usage: feeb branch RUN [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (branch,)
