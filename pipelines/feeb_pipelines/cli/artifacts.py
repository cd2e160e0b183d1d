"""`feeb artifacts`: ls, verify, import, gc."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Plugin, WorkspaceOption
from feeb_pipelines.cli.runs import runs
from feeb_pipelines.cli.tables import print_json, print_table


def ls(stage: Annotated[str | None, Parameter(help="Show only this stage.")] = None, /, *, workspace: WorkspaceOption = None, json: Json = False) -> None:
    """List artifacts. Same as `feeb runs`.

    Example:
        feeb artifacts ls pretrain
    """
    runs(stage, workspace=workspace, json=json)


def verify(
    path: Annotated[Path | None, Parameter(help="One artifact folder. Default: all.")] = None, /, *, workspace: WorkspaceOption = None, json: Json = False
) -> int:
    """Verify the size and SHA-256 of every file of finished artifacts against the manifest. Exits with status 1 on a mismatch.

    Examples:
        feeb artifacts verify
        feeb artifacts verify data/shard/quickstart-0123456789ab
    """
    from feebcore.artifacts import MANIFEST, Workspace, read_artifact
    from feebcore.errors import ArtifactError

    unreadable: dict[Path, str] = {}
    if path is not None:
        one = read_artifact(path)
        if one is None:
            raise ArtifactError(f"{path} is not a finished artifact: manifest.json is missing")
        artifacts = [one]
    else:
        space = Workspace(workspace)
        artifacts = [a for _, a in space.all(damaged=lambda folder, error: unreadable.update({folder: str(error)})) if a is not None]
    rows: list[dict[str, Any]] = [
        {"path": str(artifact.path), "files": len(artifact.manifest["files"]), "bad": artifact.verify(), "problem": ""} for artifact in artifacts
    ]
    rows += [{"path": str(folder), "files": 0, "bad": [MANIFEST], "problem": problem} for folder, problem in unreadable.items()]
    if json:
        print_json(rows)
    else:
        said = [r["problem"] or (f"mismatch: {', '.join(r['bad'])}" if r["bad"] else "ok") for r in rows]
        print_table(("artifact", "files", "result"), [(r["path"], str(r["files"]), text) for r, text in zip(rows, said, strict=True)], prose=("result",))
    return 1 if any(r["bad"] for r in rows) else 0


def import_(
    source: Annotated[Path, Parameter(help="Folder with the files that the stage would have written.")],
    stage: Annotated[str, Parameter(help="Stage that the folder belongs to, e.g. shard.")],
    name: Annotated[str, Parameter(help="Name in the workspace.")],
    /,
    *,
    note: Annotated[str, Parameter(help="Provenance note, stored in the manifest.")] = "",
    plugin: Plugin = [],  # noqa: B006
    workspace: WorkspaceOption = None,
) -> None:
    """Import an external folder into the workspace as a finished artifact.

    Example:
        feeb artifacts import ~/tokens shard mycorpus --note "made on the cluster"
    """
    from feebcore.artifacts import Workspace
    from feebcore.registry import get_registry, use_registry

    with use_registry(get_registry(tuple(Path(file) for file in plugin))):
        print(Workspace(workspace).import_folder(source, stage, name, note).path)


def gc(
    *,
    superseded: Annotated[
        bool, Parameter(help="Also remove finished artifacts that were superseded by a newer one and that no artifact uses.", negative=(), show_default=False)
    ] = False,
    keep_days: Annotated[float, Parameter(help="Keep artifacts modified within this many days.")] = 0.0,
    yes: Annotated[bool, Parameter(help="Actually remove; without it, only list.", negative=(), show_default=False)] = False,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """List unfinished artifacts that are not being built; with --yes, remove them. Artifacts used by a finished one are kept.

    Examples:
        feeb artifacts gc
        feeb artifacts gc --superseded --keep-days 7 --yes
    """
    from feebcore.artifacts import Workspace

    space = Workspace(workspace)
    for problem in space.damaged().values():
        print(f"feeb: {problem}", file=sys.stderr)
    folders = space.gc(superseded=superseded, keep_days=keep_days, dry_run=not yes)
    if json:
        return print_json([str(p) for p in folders])
    for path in folders:
        print(("removed " if yes else "would remove ") + str(path))
    if not folders:
        print("nothing to remove")
    elif not yes:
        print("pass --yes to remove them")
    return None


COMMANDS = (ls, verify, import_, gc)
