"""`feeb plugin`: new, update."""

from __future__ import annotations

import keyword
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from feebcore.errors import FeebError

TEMPLATE = Path(__file__).parents[1] / "plugin_template"
ANSWERS = ".copier-answers.yml"
PRISTINE = Path(".feeb-template")
"""Folder in a package with the files of the template as they were written: the common ancestor when `update` merges."""


def new(
    name: Annotated[str, Parameter(help="Name of the package after feeb-, e.g. sign-sgd. The part is called sign_sgd.")],
    /,
    *,
    kind: Annotated[str, Parameter(help="Kind of part: attention, optimizer, task, stage or any other that `feeb parts` lists.")],
    into: Annotated[Path, Parameter(help="Folder in which the package's folder is made.")] = Path(),
) -> None:
    """Create a plugin package: one working part, its contract test, README and a CI workflow.

    Needs copier: pip install 'feeb[plugin]'.

    Examples:
        feeb plugin new sign-sgd --kind optimizer
        feeb plugin new reverse --kind task --into ~/ideas
    """
    from feebcore import __version__
    from feebcore.files import expand_user
    from feebcore.registry import get_registry

    chosen = _kind(kind)
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise FeebError(f"{name!r} cannot name a package: use lower-case letters and digits, words joined by '-', as in sign-sgd")
    part = name.replace("-", "_")
    if keyword.iskeyword(part) or keyword.issoftkeyword(part):
        raise FeebError(f"{name!r} is a keyword of Python; choose another name")
    if find_spec(f"feeb_{part}") is not None:
        raise FeebError(f"a package feeb_{part} is installed already; choose another name")
    if any(spec.name == part for of, spec in get_registry().parts() if of == chosen):
        raise FeebError(f"{chosen}/{part} exists already; choose another name, so that recipes can use the bare one")
    target = expand_user(into) / f"feeb-{name}"
    if target.exists():
        raise FeebError(f"{target} exists already")
    _render(target, {"name": name, "kind": chosen, "feeb_version": ".".join(__version__.split(".")[:2])})
    for file in _managed(target, name):
        _copy(target / file, target / PRISTINE / file)
    print(f"created {target}")
    print(f"next: cd {target}; pip install -e '.[dev]'; pytest")


def update(folder: Annotated[Path, Parameter(help="Folder of the package.")] = Path(), /) -> int:
    """Merge the current template into the files generated from it: pyproject.toml, the CI workflow, the contract test, .gitignore.

    Your changes to these files are kept; where the template changed the same lines, both are left in the file between conflict markers and
    the exit status is 1. The part's code and README.md are left alone. The folder must be a git checkout without uncommitted changes:
    `git diff` then shows what the update changed.

    Example:
        feeb plugin update feeb-sign-sgd
    """
    from ruamel.yaml import YAML

    from feebcore import __version__

    if not (folder / ANSWERS).is_file():
        raise FeebError(f"{folder} was not made by `feeb plugin new`: it has no {ANSWERS}")
    answers = YAML(typ="safe").load(folder / ANSWERS)
    status = subprocess.run(["git", "-C", str(folder), "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False)
    if status.returncode != 0 or status.stdout.strip():
        reason = "it has uncommitted changes" if status.returncode == 0 else "it is not a git checkout"
        raise FeebError(f"{folder} is not updated: {reason}; commit everything first, so that `git diff` shows what the update changes")
    data = {"name": answers["name"], "kind": _kind(answers["kind"]), "feeb_version": ".".join(__version__.split(".")[:2])}
    conflicts = []
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary) / "fresh"
        _render(fresh, data)
        for file in _managed(fresh, answers["name"]):
            if not _merge(folder / file, folder / PRISTINE / file, fresh / file):
                conflicts.append(str(file))
            _copy(fresh / file, folder / PRISTINE / file)
    print(f"updated {folder}; `git diff` shows the changes")
    if conflicts:
        print(f"resolve the conflicts, marked <<<<<<< and >>>>>>>, in {', '.join(conflicts)}", file=sys.stderr)
    return 1 if conflicts else 0


def _managed(folder: Path, name: str) -> list[Path]:
    """The files of a freshly made package that `update` merges: all but README.md and the part's code."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [file for file in files if file.parts[0] not in ("README.md", f"feeb_{name.replace('-', '_')}")]


def _merge(mine: Path, pristine: Path, fresh: Path) -> bool:
    """Bring what changed from `pristine` to `fresh` into `mine`; False where that left conflict markers. A file that its author removed
    stays away."""
    if not mine.exists():
        if not pristine.exists():
            _copy(fresh, mine)
        return True
    base = pristine if pristine.exists() else os.devnull
    command = ["git", "merge-file", "-p", "-L", "yours", "-L", "template before", "-L", "template", str(mine), str(base), str(fresh)]
    merged = subprocess.run(command, capture_output=True, check=False)
    if not 0 <= merged.returncode < 128:  # else the number of conflicts
        raise FeebError(f"{mine} cannot be merged: {merged.stderr.decode(errors='replace').strip()}")
    mine.write_bytes(merged.stdout)
    return merged.returncode == 0


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _kind(text: str) -> str:
    """The kind, of which the singular may be written. Raises FeebError for what is none."""
    from feebcore.errors import did_you_mean
    from feebcore.hookspecs import KINDS

    plural = text.replace("-", "_")
    plural = plural if plural in KINDS else f"{plural}s"
    if plural not in KINDS:
        singular = [kind.removesuffix("s") for kind in KINDS]
        raise FeebError(f"there is no kind of part called {text!r}; {did_you_mean(text, singular)}")
    return plural


def _render(target: Path, data: dict[str, Any]) -> None:
    """Write the template's files into a new folder."""
    from feebcore.hookspecs import KINDS

    try:
        from copier import run_copy
    except ImportError as error:
        raise FeebError("feeb plugin needs copier; pip install 'feeb[plugin]'") from error
    answers = data | {"spec": KINDS[data["kind"]].__name__}
    run_copy(str(TEMPLATE), str(target), data=answers, defaults=True, quiet=True)


COMMANDS = (new, update)
