"""Parts of plugins keep the quick contract of their kind before anything expensive uses them.

`require_checked` runs the quick checks (feebcore/testing) of every part in some recipes that is not built in, in a process of its own,
and keeps what passed in `<workspace>/.checks/`, by the part's options and source and the feeb that checked it: seconds once, then
nothing. What an artifact was made with and has no such record is named in its manifest, whoever built it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import FeebError, PluginError
from feebcore.files import digest_of, read_json, write_json
from feebcore.parts import Part, parts_in
from feebcore.provenance import contracts_source
from feebcore.recipe import Recipe
from feebcore.registry import BUILTIN
from feebcore.testing.framework import WITHOUT_QUICK_CHECKS

FOLDER = ".checks"
TIMEOUT = 600.0
"""Seconds that the checks of a recipe may take; most parts take one."""


def require_checked(
    recipes: Iterable[Recipe],
    stages: Iterable[str] | None,
    workspace: Workspace,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    unchecked: bool = False,
) -> None:
    """Check what has no record yet. stages: of these and what they need; None: of all. unchecked: check nothing, say so.

    Raises PluginError, one sentence for each part that fails, FeebError where the checks themselves could not be run.
    """
    missing: dict[str, tuple[Part, tuple[Path, ...]]] = {}
    for recipe in recipes:
        wanted = set(recipe.stages if stages is None else (s for stage in stages for s in recipe.upstream(stage)))
        for stage in recipe.stages:
            if stage in wanted:
                missing |= {key: (part, recipe.plugins) for key, part in _of_plugins(recipe, stage).items() if not _record(workspace, key).exists()}
    names = sorted({_name(part) for part, _ in missing.values()})
    publish = on_progress or (lambda row: None)
    if not missing:
        return
    text = f"not checked, as asked: {', '.join(names)}" if unchecked else f"checking {', '.join(names)} (once, some seconds)"
    publish({"kind": "log", "time": time.time(), "text": text})
    if unchecked:
        return
    problems = []
    for files in dict.fromkeys(files for _, files in missing.values()):
        keys = [key for key, (_, own) in missing.items() if own == files]
        for key, outcome in zip(keys, _check([missing[key][0] for key in keys], files), strict=True):
            if outcome["check"]:
                problems.append(_sentence(missing[key][0], outcome))
            else:
                _remember(workspace, key, missing[key][0], outcome)
    if problems:
        raise PluginError("\n".join(dict.fromkeys(problems)))


def unchecked_parts(recipe: Recipe, stage: str, workspace: Workspace, inputs: Mapping[str, Artifact]) -> list[str]:
    """Parts of plugins in this stage, and in what its inputs were made with, that are not known to keep their contract."""
    names = set(unchecked_in(inputs.values()))
    for key, part in _of_plugins(recipe, stage).items():
        record = _record(workspace, key)
        breaks = read_json(record)["breaks"] if record.exists() else None
        if breaks is None:
            names.add(_name(part))
        elif breaks:
            names.add(f"{_name(part)} (said to break {', '.join(breaks)})")
    return sorted(names)


def unchecked_in(artifacts: Iterable[Artifact]) -> list[str]:
    """The parts that these artifacts' manifests name as unchecked."""
    return sorted({name for artifact in artifacts for name in artifact.manifest.get("unchecked", ())})


def unchecked_note(names: Sequence[str]) -> list[str]:
    """A line for a page; none where every part was checked."""
    return [f"unchecked parts: {', '.join(names)}. `feeb check` tells whether results with them can be believed."] if names else []


def _of_plugins(recipe: Recipe, stage: str) -> dict[str, Part]:
    """The stage's parts that are not built in and have quick checks, by what a record of them is kept under."""
    parts = [part for part in parts_in(recipe.stages[stage].section) if part.spec.distribution != BUILTIN and part.kind not in WITHOUT_QUICK_CHECKS]
    return {digest_of([part.kind, part.identity(), contracts_source()])[:20]: part for part in parts}


def _record(workspace: Workspace, key: str) -> Path:
    return workspace.root / FOLDER / f"{key}.json"


def _remember(workspace: Workspace, key: str, part: Part, outcome: Mapping[str, Any]) -> None:
    path = _record(workspace, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"part": _name(part), "options": part.dump(), "breaks": outcome["breaks"], "seconds": outcome["seconds"], "checked": time.time()})


def _name(part: Part) -> str:
    return f"{part.kind}/{part.spec.full_name}"


def _check(parts: Sequence[Part], files: tuple[Path, ...]) -> list[dict[str, Any]]:
    job = {"files": [str(file) for file in files], "parts": [{"kind": part.kind, "part": part.dump()} for part in parts]}
    command = [sys.executable, "-P", "-m", "feebcore.testing.quick"]
    try:
        done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False, timeout=TIMEOUT)
        lines, how = done.stdout.splitlines(), f"the process ended with status {done.returncode}: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    except subprocess.TimeoutExpired as late:
        lines, how = str(late.stdout or b"", "utf-8").splitlines() if isinstance(late.stdout, bytes) else [], f"it takes over {TIMEOUT:.0f} s"
    if len(lines) < len(parts):
        raise FeebError(f"{_name(parts[len(lines)])} could not be checked ({how}); see `{_command(parts[len(lines)])}`, or use it unchecked with --unchecked")
    return [json.loads(line) for line in lines]


def _command(part: Part) -> str:
    plugin = f" --plugin {part.spec.origin}" if part.spec.origin.endswith(".py") else ""
    return f"feeb check {_name(part)}{plugin}"


def _sentence(part: Part, outcome: Mapping[str, Any]) -> str:
    return (
        f"{_name(part)} fails the check {outcome['check']}, so results with it cannot be believed: {outcome['message'].rstrip('.')}; "
        f"`{_command(part)}` runs the whole contract, --unchecked uses the part nevertheless"
    )
