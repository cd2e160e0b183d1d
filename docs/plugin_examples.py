"""docs/plugin-examples.md: the part that `feeb plugin new` makes for every kind, from the files of its template."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader

from feeb_pipelines.cli.plugin import TEMPLATE
from feebcore.hookspecs import KINDS


def render(kind: str, name: str) -> dict[str, str]:
    """The two files of the part in a package feeb-NAME, by path."""
    part = name.replace("-", "_")
    values = {"name": name, "kind": kind, "part": part, "package": f"feeb_{part}", "cls": "".join(word.capitalize() for word in part.split("_"))}
    environment = Environment(loader=FileSystemLoader(TEMPLATE / "kinds" / kind), keep_trailing_newline=True, autoescape=False)
    files = {"__init__.py": "options.jinja", f"{part}.py": "part.jinja"}
    return {f"feeb_{part}/{part}/{file}": environment.get_template(source).render(values) for file, source in files.items()}


def examples_page() -> str:
    lines = [
        "# An example of each kind of part",
        "",
        "For every kind, the part that `feeb plugin new mine --kind KIND` starts you with: its options and spec, then its",
        "implementation. Each keeps the contract of its kind as it stands. [write-a-plugin.md](write-a-plugin.md) shows the package around",
        "it; what a kind is given and returns is in [extension-points.md](extension-points.md). This page is written by `make docs`.",
        "",
        " · ".join(f"[{kind}](#{kind})" for kind in KINDS),
    ]
    for kind in KINDS:
        lines += ["", f"## {kind}"]
        for path, text in render(kind, "mine").items():
            lines += ["", f'```python title="{path}"', text.rstrip("\n"), "```"]
    return "\n".join(lines) + "\n"
