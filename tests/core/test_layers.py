"""Inside the engine imports go one way, lazy and type-only ones included, and no two modules need each other."""

from __future__ import annotations

import ast
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import feebcore

ROOT = Path(feebcore.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(name: str, text: str, modules: dict[str, Path] = MODULES) -> set[str]:
    """Modules of the engine that a module imports anywhere in its text: at the top, in functions, for types."""
    targets: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            targets |= {f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in modules else node.module for alias in node.names}
    return (targets & modules.keys()) - {name, "feebcore"}


GRAPH = {name: imports_of(name, path.read_text(encoding="utf-8")) for name, path in MODULES.items() if name != "feebcore"}  # its __init__ is the public face


def layers() -> list[set[str]]:
    """The engine's layers, lowest first, as import-linter reads them."""
    document = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    (contract,) = (c for c in document["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return [{name.strip() for name in line.split("|")} for line in reversed(contract["layers"])]


def backward(graph: dict[str, set[str]], order: list[set[str]]) -> list[str]:
    """Imports from a layer into one above it, or into another member of its own layer."""
    rank = {name: number for number, names in enumerate(order) for name in names}
    top = lambda module: module.split(".")[1]  # noqa: E731
    return [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if top(module) != top(target) and rank[top(target)] >= rank[top(module)]
    ]


def test_every_module_of_the_engine_has_a_layer():
    listed = [name for names in layers() for name in names]
    assert sorted(listed) == sorted({module.split(".")[1] for module in GRAPH})


def test_no_import_goes_to_a_higher_layer():
    assert backward(GRAPH, layers()) == []


def test_no_cycle_of_modules():
    try:
        tuple(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_lazy_and_type_only_imports_count():
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from feebcore.api import Run\ndef f():\n    from feebcore.run import build\n    import feebcore.rl.trainer\n"
    assert imports_of("feebcore.files", text) == {"feebcore.api", "feebcore.run.build", "feebcore.rl.trainer"}
    assert backward({"feebcore.files": {"feebcore.api"}}, layers()) == ["feebcore.files imports feebcore.api"]
