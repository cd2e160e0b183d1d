"""What a run was made with: versions, source state, machine. No secrets: environment variables are not recorded."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from feebcore.parts import parts_in
from feebcore.recipe import Recipe

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
        "source": engine_source(),
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


@functools.cache
def engine_source() -> str:
    """A hash of feebcore's own files. It is in no fingerprint, as another feeb does not by itself make another result."""
    return _hash_of_files(f for f in (ROOT / "feebcore").rglob("*") if "testing" not in f.relative_to(ROOT).parts)


@functools.cache
def contracts_source() -> str:
    """A hash of the engine and of the checks that it makes of parts."""
    return _hash_of_files((ROOT / "feebcore").rglob("*"))


def _hash_of_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(f for f in files if f.suffix != ".pyc" and f.is_file()):
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def made_elsewise(environment: Mapping[str, Any]) -> str:
    """How the feeb that made an artifact differs from this one, for advice when it is reused; '' where it does not."""
    now = {"feeb": _feeb_version(), "commit": _git("rev-parse", "HEAD"), "source": engine_source()}
    if not environment or (environment.get("source") == now["source"] and environment.get("feeb") == now["feeb"]):
        return ""
    then = {key: str(environment.get(key) or "") for key in now}
    if then["feeb"] != now["feeb"]:
        return f"feeb {then['feeb'] or '?'}, this is {now['feeb']}"
    if then["commit"] != now["commit"]:
        return f"feeb at commit {then['commit'][:8] or '?'}, this is {now['commit'][:8] or 'an installed one'}"
    return f"other source files of feeb {now['feeb']}"


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
