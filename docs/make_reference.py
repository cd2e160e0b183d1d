"""Writes docs/extension-points.md, docs/reference.md, docs/contracts.md and docs/parts.md from the code: hook docstrings, specs, configs and their comments.

`make docs` runs it; a test fails when the files are out of date.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from feebcore import hookspecs
from feebcore.config import KeyRole
from feebcore.parts import Part, PartKey
from feebcore.registry import Registry
from feebcore.specs import Need, StageSpec

DOCS = Path(__file__).resolve().parent


def seams_page(registry: Registry) -> str:
    """Every kind: what a part is, what its factory is called with, a complete example, the built-in parts."""
    lines = [
        "# Extension points",
        "",
        "Every choice in feeb is a part, and every kind of part is a kind: one hook, one typed record. A plugin is a module",
        "with some of these hook functions; [write-a-plugin.md](write-a-plugin.md) starts from nothing. This page is written by",
        "`make docs` from feebcore/hookspecs.py and feebcore/specs.py, and a test executes every example.",
        "",
        "| kind | hook | a part is | built-in parts |",
        "|---|---|---|---|",
    ]
    for kind in hookspecs.KINDS:
        what = first_line(getattr(hookspecs, f"feeb_{kind}"))
        names = ", ".join(f"`{spec.name}`" for _, spec in registry.parts(kind) if spec.distribution == "feeb") or "none yet"
        lines.append(f"| [{kind}](#{kind}) | `feeb_{kind}` | {what[0].lower() + what[1:].rstrip('.')} | {names} |")
    for kind, kind in hookspecs.KINDS.items():
        hook = getattr(hookspecs, f"feeb_{kind}")
        example = textwrap.dedent(inspect.getdoc(hook).partition("Example::")[2]).strip()
        lines += [
            "",
            f"## {kind}",
            "",
            first_line(hook),
            "",
            f"`feebcore.{kind.__name__}`: {' '.join(inspect.getdoc(kind).split())}",
            "",
            "```python",
            example,
            "```",
        ]
        for _, spec in registry.parts(kind):
            if spec.distribution == "feeb":
                reference = f" ({spec.reference})" if spec.reference else ""
                lines += ["", f"**{spec.name}**: {spec.summary}{reference}"]
                if kind != "stages":
                    lines += options_table(spec.config)
    return "\n".join(lines) + "\n"


def reference_page(registry: Registry) -> str:
    """Every key of every stage section."""
    lines = [
        "# Recipe keys",
        "",
        "Every key of every stage, written by `make docs` from the code. The options of the parts are in [extension-points.md](extension-points.md).",
        "*identity* keys change the result and so the fingerprint; *execution* keys say how the work is done and *observation*",
        "keys what is watched: neither causes work to be done again.",
        "",
        "Top level: `name`, `description`, `extends`, `plugins`, `seed`, `stages`, `variants`, `seeds`; [recipes.md](recipes.md) explains them.",
    ]
    for _, spec in registry.parts("stages"):
        if spec.distribution != "feeb":
            continue
        assert isinstance(spec, StageSpec)
        lines += ["", f"## {spec.name}", "", f"{spec.summary} Needs: {', '.join(map(_need, spec.needs)) or 'nothing'}. Makes: {', '.join(spec.makes)}."]
        lines += options_table(spec.config)
    return "\n".join(lines) + "\n"


def _need(need: Need) -> str:
    what = "whatever the stages before it make" if need.kind == "*" else f"every {need.kind or need.name}" if need.many else need.kind or need.name
    return what + (" (optional)" if need.optional else "")


def _when(item: Any) -> str:
    some = ", ".join(name.partition("/")[2] for name in item.always)
    return " *(with `--full`" + (f"; of {some} always" if some else "") + ")*"


def contracts_page() -> str:
    """Every check, under the kinds that it belongs to."""
    from feebcore.testing import checks_for

    by_kinds: dict[tuple[str, ...], dict[str, str]] = {}
    for kind in hookspecs.KINDS:
        for item in checks_for(kind):
            by_kinds.setdefault(item.kinds, {})[item.name] = item.meaning + (_when(item) if item.full else "")
    lines = [
        "# Contracts",
        "",
        "What `feeb check` runs on a part, and what a failure means; written by `make docs` from feebcore/testing.",
        "[write-a-plugin.md](write-a-plugin.md#check-it) says how to run the checks, also from pytest.",
    ]
    for kinds, checks in by_kinds.items():
        lines += ["", f"## {', '.join(kinds) or 'all kinds'}", "", "| check | a failure means |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in checks.items()]
    return "\n".join(lines) + "\n"


def options_table(config: type[BaseModel], prefix: str = "") -> list[str]:
    rows = list(option_rows(config, prefix))
    if not rows:
        return []
    return ["", "| key | type | default | role | meaning |", "|---|---|---|---|---|", *rows]


def option_rows(config: type[BaseModel], prefix: str, inherited: str = "identity") -> list[str]:
    comments = key_comments(config)
    rows = []
    for key, field in config.model_fields.items():
        inner = field.annotation
        role = next((m.name for m in field.metadata if isinstance(m, KeyRole)), inherited)
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            rows.append(f"| `{prefix}{key}` | section | | | {comments.get(key, '')} |")
            rows += option_rows(inner, f"{prefix}{key}.", role)
            continue
        rows.append(f"| `{prefix}{key}` | {type_name(field)} | {default_text(field)} | {role} | {field.description or comments.get(key, '')} |")
    return rows


def type_name(field: Any) -> str:
    kind = next((m.kind for m in field.metadata if isinstance(m, PartKey)), None)
    if kind:
        return f"part of [{kind}](extension-points.md#{kind})"
    text = field.annotation.__name__ if inspect.isclass(field.annotation) and not hasattr(field.annotation, "__args__") else str(field.annotation)
    text = re.sub(r"typing\.Annotated\[feebcore\.config\.Part, PartKey\(kind='(\w+)'\)\]", r"part of \1", text)
    return text.replace("typing.", "").replace("feebcore.config.", "").replace("|", "or")


def default_text(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, dict) and set(value) == {"name"}:
        return f"`{value['name']}`"
    if isinstance(value, Part):
        return f"`{value.name}`"
    return f"`{value}`".replace("|", "\\|")


def key_comments(config: type[BaseModel]) -> dict[str, str]:
    """The comment at the end of each key's line, or on the lines right above it, in the class that defines it."""
    found: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        if owner in (BaseModel, object) or not issubclass(owner, BaseModel):
            continue
        try:
            source = inspect.getsource(owner).splitlines()
        except (OSError, TypeError):
            continue
        above: list[str] = []
        for line in source:
            if match := re.match(r"\s+#\s?(.*)$", line):
                above.append(match.group(1))
                continue
            if match := re.match(r"\s+(\w+)\s*:\s*(.*?)(?:\s+#\s*(.*))?$", line):
                comment = match.group(3) or " ".join(above)
                if comment and match.group(1) in config.model_fields:
                    found[match.group(1)] = comment.replace("|", "\\|")
            above = []
    return found


def first_line(hook: Any) -> str:
    return inspect.getdoc(hook).splitlines()[0]


def pages() -> dict[Path, str]:
    registry = Registry(strict=True)
    return {
        DOCS / "extension-points.md": seams_page(registry),
        DOCS / "reference.md": reference_page(registry),
        DOCS / "contracts.md": contracts_page(),
        DOCS / "parts.md": beside("parts_page").parts_page(registry, default_text),
    }


def beside(name: str) -> Any:
    """The module of this name in this folder, wherever this one was loaded from."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"wrote {path}", file=sys.stderr)
