"""The engine asks parts by methods of their base classes, which an editor lists; it does not look whether they happen to have an attribute."""

from __future__ import annotations

import ast
from pathlib import Path

import feebcore

ROOT = Path(feebcore.__file__).parent

ALLOWED = {
    "hardware.py": {"sched_getaffinity"},  # Linux has it, macOS does not
    "model/loss.py": {"placements"},  # tensors of torch: DTensor, without importing it
    "model/fp8.py": {"parametrizations"},  # torch puts it on modules whose weight is computed
    "part_source.py": {"__module__", "__qualname__"},  # functions have them, instances with __call__ do not
    "parts.py": {"*", "_is_protocol"},  # the check of a protocol itself: which of its members a part lacks
    "recipe.py": {"device", "__args__", "annotation", "model_fields"},  # typing and pydantic, for the keys that a message lists; stages may have a device
    "recipe_yaml.py": {"problem", "problem_mark", "tag", "value"},  # ruamel's errors, and its values that have a tag
    "registry.py": {"__feeb_file__", "feeb_impl"},  # marks on modules and functions of plugins
    "report/chart.py": {"_unscaled_dash_pattern"},  # matplotlib keeps a line's dashes there and nowhere public
    "train/dtensor.py": {"placements", "to_local"},
}


def looked_for(text: str) -> set[str]:
    """Attributes that `hasattr(x, name)` and `getattr(x, name, default)` look for; '*' where the name is computed."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    probing = [c for c in calls if (c.func.id == "hasattr" and len(c.args) == 2) or (c.func.id == "getattr" and len(c.args) == 3)]  # type: ignore[attr-defined]
    return {str(c.args[1].value) if isinstance(c.args[1], ast.Constant) else "*" for c in probing}


def test_both_ways_of_looking_are_seen():
    assert looked_for('hasattr(part, "a"); getattr(part, "b", None); getattr(part, name, 0); getattr(part, "c"); part.d') == {"a", "b", "*"}


def test_no_part_is_asked_whether_it_has_an_attribute():
    files = {path.relative_to(ROOT).as_posix(): looked_for(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
    engine = {name: names for name, names in files.items() if names and not name.startswith("testing/")}
    extra = {name: names - ALLOWED.get(name, set()) for name, names in engine.items() if names - ALLOWED.get(name, set())}
    assert extra == {}, "give the kind's base class a method with a default instead"
    assert {name: names - engine.get(name, set()) for name, names in ALLOWED.items() if names - engine.get(name, set())} == {}, "allowed, but gone"
