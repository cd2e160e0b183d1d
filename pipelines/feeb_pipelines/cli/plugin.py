"""`feeb plugin`: new, update."""

from __future__ import annotations

import keyword
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

TEMPLATE = Path(__file__).parents[1] / "plugin_template"
ANSWERS = ".copier-answers.yml"


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
    from feebcore.errors import FeebError
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
    print(f"created {target}")
    print(f"next: cd {target}; pip install -e '.[dev]'; pytest")


def update(folder: Annotated[Path, Parameter(help="Folder of the package.")] = Path(), /) -> None:
    """Update the files generated from the template: pyproject.toml, the CI workflow, the contract test, .gitignore.

    The part's code and README.md are left alone. The folder must be a git checkout without uncommitted changes: `git diff` then
    shows what the update changed, and `git checkout -p` takes back what you do not want.

    Example:
        feeb plugin update feeb-sign-sgd
    """
    from ruamel.yaml import YAML

    from feebcore import __version__
    from feebcore.errors import FeebError

    if not (folder / ANSWERS).is_file():
        raise FeebError(f"{folder} was not made by `feeb plugin new`: it has no {ANSWERS}")
    answers = YAML(typ="safe").load(folder / ANSWERS)
    status = subprocess.run(["git", "-C", str(folder), "status", "--porcelain", "--", "."], capture_output=True, text=True, check=False)
    if status.returncode != 0 or status.stdout.strip():
        reason = "it has uncommitted changes" if status.returncode == 0 else "it is not a git checkout"
        raise FeebError(f"{folder} is not updated: {reason}; commit everything first, so that `git diff` shows what the update changes")
    data = {"name": answers["name"], "kind": _kind(answers["kind"]), "feeb_version": ".".join(__version__.split(".")[:2])}
    _render(folder, data, keep=("README.md", f"feeb_{answers['name'].replace('-', '_')}/**"))
    print(f"updated {folder}; `git diff` shows the changes")


def _kind(text: str) -> str:
    """The kind, of which the singular may be written. Raises FeebError for what is none."""
    from feebcore.errors import FeebError, did_you_mean
    from feebcore.hookspecs import KINDS

    plural = text.replace("-", "_")
    plural = plural if plural in KINDS else f"{plural}s"
    if plural not in KINDS:
        singular = [kind.removesuffix("s") for kind in KINDS]
        raise FeebError(f"there is no kind of part called {text!r}; {did_you_mean(text, singular)}")
    return plural


def _render(target: Path, data: dict[str, Any], keep: tuple[str, ...] = ()) -> None:
    """Write the template's files into `target`, over those that are there but for `keep`."""
    from feebcore.errors import FeebError
    from feebcore.hookspecs import KINDS

    try:
        from copier import run_copy
    except ImportError as error:
        raise FeebError("feeb plugin needs copier; pip install 'feeb[plugin]'") from error
    answers = data | {"spec": KINDS[data["kind"]].__name__}
    run_copy(str(TEMPLATE), str(target), data=answers, defaults=True, overwrite=True, quiet=True, skip_if_exists=list(keep))


COMMANDS = (new, update)
