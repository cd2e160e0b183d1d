"""Answers the shell while somebody types: what may stand at the cursor, one candidate a line.

Only the standard library is loaded. What takes longer to know (commands with their options, parts, keys of recipes) is kept in a file of
the user's cache, which is made again when a package is installed or a part is added.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RECIPES = (".yaml", ".yml")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "recipe": ("recipe",),
    "recipes": ("recipe",),
    "stage": ("stage",),
    "target": ("recipe", "run"),
    "first": ("recipe", "run"),
    "second": ("recipe", "run"),
    "runs": ("run",),
    "model": ("run", "folder"),
    "source": ("run", "file"),
    "path": ("file",),
    "folder": ("folder",),
    "into": ("folder",),
    "workspace": ("folder",),
    "out": ("file",),
    "prompt_file": ("file",),
    "plugin": ("plugin",),
    "kind": ("kind",),
    "set": ("set",),
    "input": ("input",),
}
"""What an argument or an option of this name takes."""
EITHER_ORDER = ("run", "plan")
"""Commands that take a recipe and a stage, whichever comes first."""


def answer(words: Sequence[str]) -> int:
    """The candidates for `feeb __complete SHELL …`: for bash the line up to the cursor, else the words up to it, the last one begun."""
    shell, rest = words[0], list(words[1:])
    if shell == "bash":
        rest = split_line(rest[0])[1:]
    current = rest[-1] if rest else ""
    found = sorted(dict.fromkeys(candidates(rest or [""])))
    if shell == "bash":  # readline replaces only what follows the last of its word breaks
        cut = max(current.rfind("="), current.rfind(":")) + 1
        found = [candidate[cut:] for candidate in found]
    for candidate in found:
        print(candidate if shell == "fish" else re.sub(r"([\s'\"\\$`!&;()<>|*?\[\]#])", r"\\\1", candidate))
    return 0


def split_line(line: str) -> list[str]:
    """The words of a command line, the last one as far as it is written; '' where none is begun."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return [*words, ""] if not closing and line[-1:].isspace() and not line.endswith("\\ ") else words
    return line.split()


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in the place of the last of these words, which follow `feeb`."""
    known = knowledge()
    *before, current = words
    commands: dict[str, Any] = known["commands"]
    name = " ".join(before[:2]) if " ".join(before[:2]) in commands else before[0] if before else ""
    if name not in commands:
        depth = len(before)
        groups = [command.split(" ") for command in commands]
        return _starting(
            current,
            [g[depth] for g in groups if len(g) > depth and g[:depth] == list(before)]
            + (["--help", "--version"] if current.startswith("-") and not before else []),
        )
    command, rest = commands[name], before[len(name.split(" ")) :]
    options: dict[str, Any] = command["options"]
    workspace = _workspace(rest)
    if rest and (option := options.get(rest[-1])) and option["takes"] is not None:
        return _values(option, current, known, workspace, rest)
    if current.startswith("-"):
        option_name, equals, value = current.partition("=")
        if equals and option_name in options:
            return [f"{option_name}={v}" for v in _values(options[option_name], value, known, workspace, rest)]
        return _starting(current, [*options, "--help"])
    given = _positional(rest, options)
    arguments = command["arguments"]
    if not arguments or (len(given) >= len(arguments) and not arguments[-1]["many"]):
        return []
    if name in EITHER_ORDER:
        takes = ["stage"] if given and given[0].endswith(RECIPES) else ["recipe", "stage"] if not given else ["recipe"]
        return _values({"takes": takes, "choices": []}, current, known, workspace, rest)
    return _values(arguments[min(len(given), len(arguments) - 1)], current, known, workspace, rest)


def _positional(words: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    found, skip = [], False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in options and options[word]["takes"] is not None
        else:
            found.append(word)
    return found


def _workspace(words: Sequence[str]) -> Path:
    for option, value in itertools.pairwise(words):
        if option in ("-w", "--workspace"):
            return Path(value).expanduser()
    return Path(os.environ.get("FEEB_WORKSPACE") or "data")


def _values(argument: Mapping[str, Any], current: str, known: Mapping[str, Any], workspace: Path, words: Sequence[str]) -> list[str]:
    """Candidates for the value of an argument or option."""
    found: list[str] = _starting(current, argument["choices"])
    for takes in argument["takes"] or ():
        match takes:
            case "recipe":
                found += _files(current, RECIPES)
            case "plugin":
                found += _files(current, (".py",))
            case "file":
                found += _files(current, ("",))
            case "folder":
                found += _files(current, ())
            case "run":
                found += _starting(current, _runs(workspace))
            case "stage":
                found += _starting(current, known["stages"])
            case "kind":
                found += _starting(current, [*known["parts"], *(kind.removesuffix("s") for kind in known["parts"])])
            case "part":
                found += _starting(current, [*known["parts"], *(name for names in known["parts"].values() for name in names)])
            case "input":
                stage, equals, value = current.partition("=")
                runs = [f"{stage}={run}" for run in _starting(value, [r.partition("/")[2] for r in _runs(workspace) if r.startswith(f"{stage}/")])]
                found += runs if equals else _starting(current, [f"{s}=" for s in known["stages"]])
            case "set":
                found += _set(current, known, next((word for word in words if word.endswith(RECIPES)), ""))
    return found


def _starting(current: str, texts: Iterable[str]) -> list[str]:
    return [text for text in texts if text.startswith(current)]


def _files(current: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths that begin as `current`: folders, and files with one of the suffixes."""
    head, _, tail = current.rpartition("/")
    head += "/" if "/" in current else ""
    found = []
    try:
        entries = list(os.scandir(os.path.expanduser(head) or "."))
    except OSError:
        return []
    for entry in entries:
        if entry.name.startswith(tail) and (tail.startswith(".") or not entry.name.startswith(".")):
            if entry.is_dir():
                found.append(f"{head}{entry.name}/")
            elif any(entry.name.endswith(suffix) for suffix in suffixes):
                found.append(f"{head}{entry.name}")
    return found


def _runs(workspace: Path) -> list[str]:
    """`stage/name` of every artifact; with its fingerprint where several have the name."""
    named: dict[str, list[str]] = {}
    for folder in workspace.glob("[!._]*/[!.]*-*"):
        named.setdefault(f"{folder.parent.name}/{folder.name.rpartition('-')[0]}", []).append(f"{folder.parent.name}/{folder.name}")
    return [text for name, folders in named.items() for text in ([name] if len(folders) == 1 else folders)]


def _set(current: str, known: Mapping[str, Any], recipe: str) -> list[str]:
    """Keys of a recipe: sections, options, options of the parts that the recipe names or that are the default; values after '='."""
    dotted, equals, value = current.partition("=")
    *path, last = dotted.split(".")
    if equals:
        entry = _options_at(path, known, recipe).get(last, {})
        choices = [*known["parts"].get(entry.get("kind", ""), ()), *entry.get("choices", ())]
        return [f"{dotted}={text}" for text in _starting(value, choices)]
    if not path:
        return _starting(current, [*(f"{stage}." for stage in known["stages"]), "name=", "seed="])
    found: list[str] = []
    for key, entry in _options_at(path, known, recipe).items():
        whole = ".".join([*path, key])
        found += [f"{whole}."] if entry.get("section") else [f"{whole}=", f"{whole}."] if entry.get("kind") else [f"{whole}="]
    return _starting(current, found)


def _options_at(path: Sequence[str], known: Mapping[str, Any], recipe: str) -> dict[str, Any]:
    """The keys below a dotted path."""
    options: dict[str, Any] = known["sections"].get(path[0], {}) if path else {}
    for key in path[1:]:
        entry = options.get(key, {})
        if entry.get("section"):
            options = entry["section"]
            continue
        parts = known["parts"].get(entry.get("kind", ""), {})
        text = _text_of(Path(recipe).expanduser())
        chosen = {entry.get("default", ""), *(name for name in parts if re.search(rf"\b{re.escape(name)}\b", text))}
        options = {k: v for name in chosen for k, v in parts.get(name, {}).items()}
    return options


def _text_of(recipe: Path, depth: int = 4) -> str:
    """The text of a recipe and of those that it extends."""
    try:
        text = recipe.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    parent = re.search(r"^extends:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    return text + (_text_of(recipe.parent / parent[1], depth - 1) if parent and depth else "")


# --- what is known ------------------------------------------------------------------------------------------------------------------


def knowledge() -> dict[str, Any]:
    """Commands, stages, parts and keys, from the cache where it is current."""
    try:
        return json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return refresh_knowledge()


def refresh_knowledge() -> dict[str, Any]:
    """Find everything out (about a second) and keep it."""
    known, path = gather(), _cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.json"):
            old.unlink()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(known), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        pass  # without a cache the next answer takes as long again
    return known


def _cache_file() -> Path:
    """Named after the environment, and after what changes when a package or a built-in part comes or goes."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feeb"
    root = Path(__file__).resolve().parents[3]
    folders = [
        sysconfig.get_path("purelib"),
        str(Path(__file__).parent),
        *map(str, Path(root, "plugins").glob("feeb_*")),
        *map(str, Path(root, "plugins").glob("feeb_*/*/")),
    ]
    stamps = []
    for folder in folders:
        try:
            stamps.append(os.stat(folder).st_mtime_ns)
        except OSError:
            continue
    own = os.stat(__file__).st_mtime_ns
    place = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return base / f"completion-{place}-{hashlib.sha256(repr((own, stamps)).encode()).hexdigest()[:12]}.json"


def gather() -> dict[str, Any]:
    """Everything that completion knows of commands and plugins. Loads the command line and all plugins, but no torch."""
    from feeb_pipelines.cli.app import make_app
    from feebcore.registry import get_registry

    app = make_app()
    commands: dict[str, Any] = {}
    for name in (n for n in app if not n.startswith("-")):
        group = app[name]
        inner = {f"{name} {n}": group[n] for n in group if not n.startswith("-")} or {name: group}
        commands |= {full: _command(full, command.default_command) for full, command in inner.items()}
    parts: dict[str, dict[str, Any]] = {}
    for kind, spec in get_registry().parts():
        name = spec.name if spec.full_name.startswith("feeb/") else spec.full_name
        parts.setdefault(kind, {})[name] = {} if kind == "stages" else _keys(spec.config)
    sections = {spec.name: _keys(spec.config) for _, spec in get_registry().parts("stages")}
    return {"commands": commands, "stages": list(sections), "sections": sections, "parts": parts}


def _command(name: str, function: Any) -> dict[str, Any]:
    import inspect
    import typing

    from cyclopts import Parameter

    options: dict[str, Any] = {}
    arguments = []
    hints = typing.get_type_hints(function, include_extras=True)
    for parameter in inspect.signature(function).parameters.values():
        annotation = hints[parameter.name]
        settings = next((m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, Parameter)), Parameter())
        choices = list(_literals(annotation))
        takes: list[str] | None = list(ARGUMENTS.get(parameter.name.strip("_"), ()))
        if name in ("parts", "check") and parameter.name == "name":
            takes = ["part"]
        many = parameter.kind is parameter.VAR_POSITIONAL
        if many or parameter.kind is parameter.POSITIONAL_ONLY:
            arguments.append({"takes": takes, "choices": choices, "many": many})
            continue
        names = list(settings.name or ()) or [f"--{parameter.name.strip('_').replace('_', '-')}"]
        if isinstance(parameter.default, bool):
            takes = None
            negative: Any = settings.negative or ()
            names += [negative] if isinstance(negative, str) else [*negative]
        options |= {str(n): {"takes": takes, "choices": choices} for n in names}
    return {"arguments": arguments, "options": options}


def _literals(annotation: Any) -> Iterator[str]:
    import typing

    if typing.get_origin(annotation) is typing.Literal:
        yield from map(str, typing.get_args(annotation))
    else:
        for inner in typing.get_args(annotation):
            yield from _literals(inner)


def _keys(config: Any) -> dict[str, Any]:
    """Of each option: the kind and the default of its part, its choices, or its own keys."""
    import inspect

    from pydantic import BaseModel

    from feebcore.parts import default_of, part_kind

    found: dict[str, Any] = {}
    for key, field in config.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            found[key] = {"section": _keys(field.annotation)}
            continue
        entry: dict[str, Any] = {}
        if kind := part_kind(field):
            default = field.default
            entry = {"kind": kind, "default": default["name"] if isinstance(default, dict) and "name" in default else default_of(field)}
        elif field.annotation is bool:
            entry = {"choices": ["true", "false"]}
        elif choices := list(_literals(field.annotation)):
            entry = {"choices": choices}
        found[key] = entry
    return found
