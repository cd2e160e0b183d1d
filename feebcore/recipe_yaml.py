"""Reading a recipe's YAML: plain values with the line of every key, `extends`, `--set`, and merging. Knows no stage and no part."""

from __future__ import annotations

import io
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from feebcore.errors import RecipeError, did_you_mean, plural

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
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply for a recipe") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
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


def _no_recipe(path: Path) -> str:
    near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    return f"no recipe {path}; {did_you_mean(str(path), near)}"


def _plain(value: Any, path: Path, left: list[int] | None = None) -> Any:
    """The value without ruamel's types and with aliases written out. left: a count of values that may still come."""
    left = left if left is not None else [MOST_VALUES]
    left[0] -= 1
    if left[0] < 0:
        raise RecipeError(f"{path}: more than {MOST_VALUES:,} values with its aliases (`*name`) written out; a recipe is not that large")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"{path}: key {key!r} must be text")
        return {str(k): _plain(v, path, left) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, path, left) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise RecipeError(f"{path}: {value!r} is a {type(value).__name__}; use text, numbers, lists and mappings")


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
        set_key(data, key.strip(), parse_scalar(value))
        lines.set_keys.add(key.strip())
        lines.overrides.append(text)
    return data, lines


def _extended(path: Path, lines: Lines, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(map(str, chain))}")
    data, document = read_yaml(path)
    base: dict[str, Any] = {}
    if parent := data.pop("extends", None):
        if not isinstance(parent, str):
            raise RecipeError(f"{path}: extends is the path of one recipe")
        if not (path.parent / parent).is_file():
            raise RecipeError(f"{path}:{Lines._line(document, ['extends'])}: extends: {_no_recipe(path.parent / parent)}")
        base = _extended(path.parent / parent, lines, (*chain, path.resolve()))
    if plugins := data.get("plugins"):
        if not isinstance(plugins, list) or not all(isinstance(p, str) for p in plugins):
            raise RecipeError(f"{path}: plugins is a list of files, as in [./idea.py]")
        inherited = base.pop("plugins", [])
        data["plugins"] = inherited + [str((path.parent / p).resolve()) for p in plugins]
    lines.documents.append((path, document))
    return merge(base, data)


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
    elif isinstance(node.get(last), dict) and isinstance(value, str):
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
        return _plain(yaml.load(text), Path("--set")) if text.strip() else ""
    except YAMLError as error:
        raise RecipeError(f"--set: {text!r} is not a YAML value ({getattr(error, 'problem', error)})") from None
