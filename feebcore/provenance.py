"""What a run was made with: versions, source state, machine. No secrets: environment variables are not recorded."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from feebcore.parts import parts_in
from feebcore.recipe import Recipe
from feebcore.registry import BUILTIN, source_hash
from feebcore.specs import PartSpec

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "zarr", "polars", "tokenizers", "safetensors", "pydantic", "prefect")


def describe_environment() -> dict[str, Any]:
    """Python, packages, machine and, in a checkout, the commit. Loads none of the packages."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "feeb": _feeb_version(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", "feebcore", "plugins", "pipelines")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions,
        "executable": sys.executable,
    }


def describe_plugins(recipe: Recipe, stage: str) -> list[dict[str, str]]:
    """Every part a stage uses: kind, full name, revision, version of its distribution, origin."""
    entry = recipe.stages[stage]
    rows = []
    for kind, spec in dict.fromkeys([("stages", entry.spec), *((p.kind, p.spec) for p in parts_in(entry.section))]):
        rows.append({"kind": kind, "part": spec.full_name, "revision": str(spec.revision), "version": _version(spec.distribution), "origin": spec.origin})
    return rows


def plugin_sources(recipe: Recipe, stage: str) -> dict[str, str]:
    """Source hashes of the plugins that make a stage's result and have no fixed version: single files, editable installs, and
    built-in packages with uncommitted changes. Parts that only watch (`Observation` keys) or say how the work is done do not count."""
    entry = recipe.stages[stage]
    sources = {}
    for spec in [entry.spec, *(p.spec for p in parts_in(entry.section, identity_only=True))]:
        place = _unversioned(spec)
        if place is not None:
            sources[f"{spec.distribution}:{place.name}"] = source_hash(place)[:16]
    return dict(sorted(sources.items()))


def _unversioned(spec: PartSpec) -> Path | None:
    if spec.origin.endswith(".py"):
        return Path(spec.origin)
    module = spec.origin.partition(" = ")[2].partition(":")[0].partition(".")[0]
    if spec.distribution == BUILTIN:
        folder = ROOT / "plugins" / module
        return folder if module.startswith("feeb_") and folder.is_dir() and folder.name in _dirty_plugins() else None
    if not _editable(spec.distribution):
        return None
    module_spec = importlib.util.find_spec(module)
    if module_spec is None or not module_spec.origin:
        return None
    return Path(module_spec.origin).parent if module_spec.submodule_search_locations else Path(module_spec.origin)


@functools.cache
def _editable(distribution: str) -> bool:
    try:
        text = importlib.metadata.distribution(distribution).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


@functools.cache
def _dirty_plugins() -> frozenset[str]:
    lines = _git("status", "--porcelain", "--untracked-files=all", "--", "plugins").splitlines()
    paths = [line[2:].strip().strip('"') for line in lines if line.endswith(".py")]
    return frozenset(Path(p).parts[1] for p in paths if len(Path(p).parts) > 1)


@functools.cache
def _git(*arguments: str) -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _feeb_version() -> str:
    from feebcore import __version__

    return __version__
