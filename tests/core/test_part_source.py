"""A part's fingerprint follows the code and data that make the part, file by file, wherever they are installed."""

import importlib
import shutil
import sys
from pathlib import Path

import pytest

from feebcore import part_source
from feebcore.parts import Part
from feebcore.registry import Registry, get_registry

FILES = {
    "__init__.py": """
        import feebcore as feeb
        from idea_pack.attention import TemperedConfig
        from idea_pack.options import ProseConfig

        @feeb.hookimpl
        def feeb_attentions():
            yield feeb.AttentionSpec("tempered", TemperedConfig, build="idea_pack.attention:Tempered", summary="Tempered.")

        @feeb.hookimpl
        def feeb_filters():
            yield feeb.FilterSpec("prose", ProseConfig, build="idea_pack.prose:build", summary="Keeps prose.")
        """,
    "attention.py": """
        from feebcore.config import PartConfig
        from feeb_models.attentions.multi_head import MultiHeadConfig
        from . import scale

        class TemperedConfig(MultiHeadConfig):
            tempered: bool = True

        class Tempered:
            half = scale.HALF
        """,
    "scale.py": "from .inner.deep import DEEP\nHALF = DEEP / 2\n",
    "inner/__init__.py": '"""Nothing."""\n',
    "inner/deep.py": "DEEP = 4\n",
    "options.py": "from feebcore.config import PartConfig\n\nclass ProseConfig(PartConfig):\n    words: int = 3\n",
    "prose.py": """
        from pathlib import Path

        def build(config, context):
            from idea_pack.words import COUNT
            return Path(__file__).with_name("stop.json"), COUNT
        """,
    "words.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from idea_pack.attention import Tempered\nCOUNT = 2\nUNUSED = 1\n",
    "stop.json": "[]",
    "tables/common.yaml": "a: 1",
    "README.md": "About.",
}


def install(site: Path) -> Path:
    """A wheel's files: a package and its dist-info."""
    package = site / "idea_pack"
    for name, text in FILES.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.split("\n")
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines).lstrip("\n"))
    info = site / "idea_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: idea-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[feeb]\nidea = idea_pack\n")
    (info / "RECORD").write_text("".join(f"idea_pack/{name},,\n" for name in FILES))
    return package


@pytest.fixture
def package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    part_source._packages_of.cache_clear()
    part_source._data_files.cache_clear()
    yield install(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "idea_pack"]:
        del sys.modules[name]
    part_source._packages_of.cache_clear()
    part_source._data_files.cache_clear()


def hashes(registry):
    return {kind: part_source.hash_of(registry.resolve(kind, name)) for kind, name in (("attentions", "tempered"), ("filters", "prose"))}


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("attention.py", {"attentions"}),
        ("scale.py", {"attentions"}),
        ("inner/deep.py", {"attentions"}),
        ("prose.py", {"filters"}),
        ("options.py", {"filters"}),
        ("words.py", {"filters"}),  # imported inside a function; what it imports for type checkers is not followed
        ("stop.json", {"filters"}),
        ("tables/common.yaml", {"attentions", "filters"}),  # no module names it, so any may read it
        ("__init__.py", set()),  # only passed through
        ("inner/__init__.py", set()),
        ("README.md", set()),
    ],
)
def test_a_part_of_a_wheel_changes_with_the_files_that_it_reaches(package, file, changes):
    registry = Registry()
    before = hashes(registry)
    with open(package / file, "a") as stream:
        stream.write("\n")
    after = hashes(registry)
    assert {kind for kind in before if before[kind] != after[kind]} == changes


def test_a_package_that_does_something_when_it_is_imported_counts_for_all_its_parts(package):
    registry = Registry()
    before = hashes(registry)
    with open(package / "__init__.py", "a") as stream:
        stream.write("import os\nos.environ.setdefault('IDEA', '1')\n")
    assert all(before[kind] != now for kind, now in hashes(registry).items())


def test_what_a_part_builds_on_among_the_built_in_parts_counts_too(package):
    files = part_source.files_of(Registry().resolve("attentions", "tempered"))
    assert {"idea_pack.attention", "feeb_models.attentions.multi_head", "feeb_models.attentions.options"} <= files.keys()
    assert not any(name.startswith("feebcore") for name in files)


def test_the_same_bytes_elsewhere_are_the_same_source(package, tmp_path):
    registry = Registry()
    before = hashes(registry)
    elsewhere = tmp_path / "editable"
    shutil.move(package, elsewhere / "idea_pack")
    sys.path.insert(0, str(elsewhere))
    part_source._packages_of.cache_clear()
    importlib.invalidate_caches()
    for name in [name for name in sys.modules if name.partition(".")[0] == "idea_pack"]:
        del sys.modules[name]
    try:
        assert hashes(Registry()) == before
    finally:
        sys.path.remove(str(elsewhere))


def test_a_single_file_changes_with_its_helper_and_the_data_that_it_names(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lone_idea.py").write_text(
        "import json\nfrom pathlib import Path\nimport feebcore as feeb\nfrom lone_helper import limit\n\n"
        "def build(config, context):\n    return json.loads((Path(__file__).parent / 'tables' / 'lone.json').read_text())[limit()]\n\n"
        "@feeb.hookimpl\ndef feeb_filters():\n    yield feeb.FilterSpec('lone', build=build, summary='Keeps some.')\n"
    )
    (tmp_path / "lone_helper.py").write_text("def limit():\n    return 0\n")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "lone.json").write_text("[1]")
    (tmp_path / "other.json").write_text("[1]")
    registry = Registry((tmp_path / "lone_idea.py",), entry_points=False)
    spec = registry.resolve("filters", "lone")
    seen = [part_source.hash_of(spec)]
    for name in ("other.json", "lone_helper.py", "tables/lone.json", "lone_idea.py"):
        with open(tmp_path / name, "a") as stream:
            stream.write("\n")
        seen.append(part_source.hash_of(spec))
    assert seen[0] == seen[1]
    assert len(set(seen)) == 4
    for name in ("lone_idea", "lone_helper"):
        sys.modules.pop(name, None)


def test_every_built_in_part_has_a_source_and_editing_it_is_another_identity():
    registry = get_registry()
    for kind, spec in registry.parts():
        builds = spec.build if isinstance(spec.build, str) else spec.build.__module__
        assert bool(part_source.hash_of(spec)) == builds.startswith("feeb_"), (kind, spec.name)
    spec = registry.resolve("optimizers", "adamw")
    assert Part("optimizers", spec, spec.config()).identity()["source"] == part_source.hash_of(spec)
