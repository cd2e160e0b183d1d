"""Reading a recipe's YAML: plain values with the line of every key, `extends`, `--set`, and merging. Knows no stage and no part."""

from __future__ import annotations

import datetime
import io
import json
import operator
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.errors import RecipeError, did_you_mean, plural
from feebcore.files import NoHomeError, expand_user

MOST_VALUES = 100_000
"""In one recipe: nested aliases grow without limit, ten lines to gigabytes."""


def read_yaml(path: Path) -> tuple[dict[str, Any], Any]:
    """A YAML 1.2 mapping as plain values, and the parsed document with its line numbers."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    if not path.is_file():
        raise RecipeError(_no_recipe(path))
    yaml = YAML(typ="rt", pure=True)
    yaml.version = "1.2"  # type: ignore[assignment]
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error})") from None
    except (RecursionError, ValueError, YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = _problem(error)
        if "another document" in problem:
            raise RecipeError(f"{path}{line}: a second recipe begins here (`---`); a recipe is a file of its own") from None
        if twice := re.match(r'found duplicate key "(.*?)" with value', problem):
            raise RecipeError(f"{path}{line}: key {twice[1]!r} is here for the second time; remove one of the two") from None
        raise RecipeError(f"{path}{line}: not YAML: {problem}") from None
    if document is None:
        raise RecipeError(f"{path}: the recipe is empty; it needs at least `stages:`")
    if not isinstance(document, dict):
        what = "a list" if isinstance(document, list) else repr(document)
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, as in `stages: [pretrain]`, not {what}")
    return _plain(document, path), document


def _problem(error: Exception) -> str:
    """What the YAML reader found, in one line."""
    from ruamel.yaml.error import YAMLError

    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, YAMLError):
        return str(getattr(error, "problem", None) or error).splitlines()[0]
    return "a number or date that cannot be"  # ValueError: 5,000 digits, the 31st of February


def _no_recipe(path: Path) -> str:
    near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"no recipe {path}; {did_you_mean(str(path), near)}"


def _plain(value: Any, path: Path | str, left: list[int] | None = None, key: str = "") -> Any:
    """The value without ruamel's types and with aliases written out. left: a count of values that may still come. key: of the value."""
    left = left if left is not None else [MOST_VALUES]
    left[0] -= 1
    if left[0] < 0:
        raise RecipeError(f"{path}: more than {MOST_VALUES:,} values with its aliases (`*name`) written out; a recipe is not that large")
    where = f"{path}: {key}" if key else str(path)
    if tag := getattr(getattr(value, "tag", None), "value", None):
        raise RecipeError(f"{where}: tag {tag!r}; a recipe has no tags, write the value itself, in quotes where it is text")
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                line = Lines._line(value, [name]) if isinstance(path, Path) else None
                raise RecipeError(f"{path}{f':{line}' if line else ''}: key {_shown(name)} must be text; put it in quotes if it is meant as a key")
        return {str(k): _plain(v, path, left, f"{key}.{k}" if key else str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, path, left, f"{key}.{i}" if key else str(i)) for i, v in enumerate(value)]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RecipeError(f"{where}: a number of {len(str(value))} digits; whole numbers have 64 bits")
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise RecipeError(
        f"{where}: {_shown(value)} is a {type(value).__name__.removeprefix('Commented').lower()}; use text (in quotes), numbers, lists and mappings"
    )


def _shown(value: Any) -> str:
    """A value that no recipe may hold as a recipe would have it."""
    return str(value) if isinstance(value, datetime.date) else repr(json.loads(json.dumps(value, default=list)))


class Lines:
    """Finds the file and line of a key, through `extends`, `--set` and the variant that is being built."""

    def __init__(self) -> None:
        self.documents: list[tuple[Path, Any]] = []
        self.set_keys: set[str] = set()
        self.overrides: list[str] = []
        self.variant = ""
        self.variant_keys: tuple[str, ...] = ()

    def of(self, keys: Sequence[Any]) -> str:
        """`file:line` of a key given by its path, or how it was set otherwise."""
        dotted = ".".join(map(str, keys))
        if key := _around(dotted, self.variant_keys):
            return f"{self.of(['variants', self.variant, key])} (variant {self.variant!r})"
        if _around(dotted, self.set_keys):
            return f"--set {dotted}"
        for length in range(len(keys), 0, -1):
            for path, document in reversed(self.documents):
                if (line := self._line(document, keys[:length])) is not None:
                    return f"{path}:{line}"
        if any(k.startswith(dotted + ".") for k in self.set_keys):  # a section that only --set made
            return f"--set {dotted}"
        return str(self.documents[-1][0]) if self.documents else "recipe"

    def chosen(self, section: str, data: Mapping[str, Any]) -> str:
        """Where the section of a stage is written by who chose the stages: in the file that lists them, one that extends it, the variant or
        --set. '' where it came with a file whose stages were replaced, or from `quick:`. data: the merged recipe."""
        of_variants = [key for changes in _mapping(data.get("variants")).values() for key in _mapping(changes)]
        for key in [*self.variant_keys, *(key for key in self.set_keys if key not in _mapping(data.get("quick")))]:
            if key.partition(".")[0] == section:
                return self.of(key.split("."))
        if "stages" in {*self.set_keys, *of_variants}:
            return ""
        listing = max((i for i, (_, document) in enumerate(self.documents) if "stages" in document), default=0)
        return self.of([section]) if any(section in document for _, document in self.documents[listing:]) else ""

    @staticmethod
    def _line(document: Any, keys: Sequence[Any]) -> int | None:
        position: Any = operator.attrgetter("lc")  # ruamel's lines and columns
        node: Any = document
        line: int | None = None
        for key in keys:
            try:
                if isinstance(node, dict) and key in node:
                    line = position(node).key(key)[0] + 1
                elif isinstance(node, list) and isinstance(key, int) and key < len(node):
                    line = position(node).item(key)[0] + 1
                else:
                    return None
                node = node[key]
            except (AttributeError, KeyError, TypeError):
                return None
        return line


def _mapping(value: Any) -> Mapping[str, Any]:
    """`value`, or nothing where it is no mapping, which is reported elsewhere."""
    return value if isinstance(value, dict) else {}


def _around(dotted: str, keys: Iterable[str]) -> str:
    """The one of `keys` that is `dotted` or holds it, '' when there is none."""
    return next((k for k in keys if dotted == k or dotted.startswith(k + ".")), "")


def read_merged(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], Lines]:
    """A recipe with what it extends and `key=value` texts over it, and where each key stands. Raises RecipeError."""
    lines = Lines()
    data = _extended(path, lines, ())
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"--set {text!r}: write key=value, as in --set pretrain.max_steps=100")
        if key.strip() == "extends":
            raise RecipeError(f"--set {text!r}: only a recipe can extend another; write one with `extends:` and run it")
        set_key(data, key.strip(), parse_scalar(value))
        lines.set_keys.add(key.strip())
        lines.overrides.append(text)
    if not isinstance(data.get("quick"), dict | None):
        raise RecipeError(f"{lines.of(['quick'])}: quick is a mapping of keys to the values that make the recipe small")
    return data, lines


def _extended(path: Path, lines: Lines, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(map(str, chain))}")
    data, document = read_yaml(path)
    base: dict[str, Any] = {}
    if (parent := data.pop("extends", None)) is not None:
        where = f"{path}:{Lines._line(document, ['extends'])}: extends"
        if not isinstance(parent, str) or not parent:
            raise RecipeError(f"{where} is the path of one recipe, not {parent!r}")
        file = path.parent / _at_home(parent, where)
        if not os.path.isfile(file):
            raise RecipeError(f"{where}: {_no_recipe(file)}")
        base = _extended(file, lines, (*chain, path.resolve()))
    if plugins := data.get("plugins"):
        where = f"{path}:{Lines._line(document, ['plugins'])}: plugins"
        if not isinstance(plugins, list) or not all(isinstance(p, str) and p for p in plugins):
            raise RecipeError(f"{where} is a list of files, as in [./idea.py]")
        inherited = base.pop("plugins", [])
        data["plugins"] = inherited + [str((path.parent / _at_home(p, where)).resolve()) for p in plugins]
    lines.documents.append((path, document))
    return merge(base, data)


def _at_home(path: str, where: str) -> Path:
    try:
        return expand_user(path)
    except NoHomeError as error:
        raise RecipeError(f"{where}: {error}") from None


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`: mappings merge, but a part that changes its name starts from its defaults."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def set_key(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in place; a part written as a bare name becomes `{name: …}` when an option of it is set."""
    *parents, last = dotted.split(".")
    node: Any = data
    for i, key in enumerate(parents):
        if isinstance(node, list):
            node = _item(node, key, dotted)
            continue
        child = node.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str):
            child = {"name": child}
        elif not isinstance(child, dict | list):
            raise RecipeError(f"{dotted}: {'.'.join(parents[: i + 1])} is {child!r}, which has no keys")
        node[key] = child
        node = child
    if isinstance(node, list):
        index = node.index(_item(node, last, dotted))
        node[index] = value
    elif isinstance(node.get(last), dict) and isinstance(value, str) and parents:
        node[last] = {"name": value} if node[last].get("name") != value else node[last]
    elif last == "name" and parents and node.get("name") not in (None, value):
        node.clear()  # another part: the options were those of the one before
        node["name"] = value
    else:
        node[last] = value


def _item(node: list[Any], key: str, dotted: str) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise RecipeError(f"{dotted}: {key!r} is not an index of a list of {plural(len(node), 'item')}")
    item = node[int(key)]
    if isinstance(item, str):
        item = node[int(key)] = {"name": item}
    return item


def parse_scalar(text: str) -> Any:
    """One YAML 1.2 value from the command line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        yaml = YAML(typ="rt", pure=True)
        yaml.version = "1.2"  # type: ignore[assignment]
        return _plain(yaml.load(text), f"--set {text[:60]}") if text.strip() else ""
    except (RecursionError, ValueError, YAMLError) as error:
        raise RecipeError(f"--set: {text[:60]!r} is not a YAML value ({_problem(error)})") from None
