"""`feeb branch`: go on from any checkpoint of a training run, with other settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Set, WorkspaceOption

if TYPE_CHECKING:
    from feebcore.artifacts import Workspace

STAGE = "pretrain"


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
    at = int(checkpoint.name.rpartition("-")[2])
    branch_name = name or f"{folder.name.rpartition('-')[0]}-from-{at}"
    changes = [f"name={branch_name}", f"{STAGE}.init_from=", f"{STAGE}.branch_from={folder}", f"{STAGE}.branch_step={at}"]
    return run(STAGE, str(folder / "recipe.json"), set=[*changes, *set], workspace=workspace, in_process=in_process, json=json)


def find(space: Workspace, source: str) -> Path:
    """The folder of a training run, finished or not. Raises FeebError when none or several are meant."""
    from feebcore.errors import FeebError

    if (Path(source) / "recipe.json").is_file():
        return Path(source).resolve()
    folders = sorted(p.parent for p in (space.root / STAGE).glob("*/recipe.json"))
    found = [f for f in folders if source in (f.name, f.name.rpartition("-")[0]) or f.name.rpartition("-")[2].startswith(source)]
    if len(found) == 1:
        return found[0].resolve()
    if found:
        raise FeebError(f"{source!r} means several runs: {', '.join(f.name for f in found)}; name one by its fingerprint")
    raise FeebError(f"no training run {source!r} in {space.root / STAGE}" + (f"; there are {', '.join(f.name for f in folders[:10])}" if folders else ""))


branch.usage = "Usage: feeb branch RUN [OPTIONS]"  # type: ignore[attr-defined]

COMMANDS = (branch,)
