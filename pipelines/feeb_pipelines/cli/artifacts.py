"""`feeb artifacts`: ls, verify, import, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.inspection import _print_json, _print_table, runs
from feeb_pipelines.cli.options import Json, WorkspaceOption


def ls(stage: Annotated[str | None, Parameter(help="Only this stage.")] = None, /, *, workspace: WorkspaceOption = None, json: Json = False) -> None:
    """List artifacts, as `feeb runs` does.

    Example:
        feeb artifacts ls pretrain
    """
    runs(stage, workspace=workspace, json=json)


def verify(
    path: Annotated[Path | None, Parameter(help="One artifact folder; default all.")] = None, /, *, workspace: WorkspaceOption = None, json: Json = False
) -> int:
    """Read every file of finished artifacts and compare size and SHA-256 with the manifest; exit status 1 when one differs.

    Examples:
        feeb artifacts verify
        feeb artifacts verify data/shard/quickstart-0123456789ab
    """
    from feebcore.artifacts import MANIFEST, Workspace, read_artifact
    from feebcore.errors import ArtifactError

    unreadable: list[Path] = []
    if path is not None:
        one = read_artifact(path)
        if one is None:
            raise ArtifactError(f"{path} is no finished artifact: it has no manifest.json")
        artifacts = [one]
    else:
        artifacts = [a for _, a in Workspace(workspace).all(damaged=lambda folder, error: unreadable.append(folder)) if a is not None]
    rows: list[dict[str, Any]] = [{"path": str(artifact.path), "files": len(artifact.manifest["files"]), "bad": artifact.verify()} for artifact in artifacts]
    rows += [{"path": str(folder), "files": 0, "bad": [MANIFEST]} for folder in unreadable]
    if json:
        _print_json(rows)
    else:
        _print_table(("artifact", "files", "outcome"), [(r["path"], str(r["files"]), f"wrong: {', '.join(r['bad'])}" if r["bad"] else "ok") for r in rows])
    return 1 if any(r["bad"] for r in rows) else 0


def import_(
    source: Annotated[Path, Parameter(help="A folder made elsewhere, with the stage's files.")],
    stage: Annotated[str, Parameter(help="The stage that would have made it, as shard.")],
    name: Annotated[str, Parameter(help="Its name in the workspace.")],
    /,
    *,
    note: Annotated[str, Parameter(help="Where it comes from; kept in the manifest.")] = "",
    workspace: WorkspaceOption = None,
) -> None:
    """Copy a folder made elsewhere into the workspace as a finished artifact.

    Example:
        feeb artifacts import ~/tokens shard mycorpus --note "made on the cluster"
    """
    from feebcore.artifacts import Workspace

    print(Workspace(workspace).import_folder(source, stage, name, note).path)


def gc(
    *,
    superseded: Annotated[
        bool, Parameter(help="Also finished artifacts that a newer one replaced and that nothing refers to.", negative=(), show_default=False)
    ] = False,
    keep_days: Annotated[float, Parameter(help="Keep what was changed within so many days.")] = 0.0,
    yes: Annotated[bool, Parameter(help="Remove; without it, only list.", negative=(), show_default=False)] = False,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """List unfinished artifacts that nobody is building, and with --yes remove them. What a finished one refers to stays.

    Examples:
        feeb artifacts gc
        feeb artifacts gc --superseded --keep-days 7 --yes
    """
    from feebcore.artifacts import Workspace

    folders = Workspace(workspace).gc(superseded=superseded, keep_days=keep_days, dry_run=not yes)
    if json:
        return _print_json([str(p) for p in folders])
    for path in folders:
        print(("removed " if yes else "would remove ") + str(path))
    if not folders:
        print("nothing to remove")
    elif not yes:
        print("--yes removes them")
    return None


COMMANDS = (ls, verify, import_, gc)
