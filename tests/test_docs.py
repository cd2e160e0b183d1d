"""The docs match the code: every snippet runs, every public name is documented, every link resolves."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feebcore import hookspecs, recipe
from feebcore.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def make_reference():
    """docs/make_reference.py as a module."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("kind", hookspecs.KINDS)
def test_the_example_of_every_hook_yields_a_spec_of_its_kind(kind):
    example, _ = make_reference().example_of(getattr(hookspecs, f"feeb_{kind}"))
    namespace = {}
    exec(example, namespace)  # the docstring is our own code
    (spec,) = namespace[f"feeb_{kind}"]()
    assert isinstance(spec, hookspecs.KINDS[kind])


def test_generated_pages_are_up_to_date():
    for path, text in make_reference().pages().items():
        assert path.read_text() == text, f"run `make docs`: {path.name} is out of date"


def test_every_built_in_part_has_a_summary_and_every_kind_a_section_on_the_page():
    page = (ROOT / "docs" / "extension-points.md").read_text()
    for kind, spec in Registry().parts():
        assert spec.summary.strip().endswith("."), f"{kind} {spec.name}: end the summary with a period"
        assert f"**{spec.name}**" in page or spec.distribution != "feeb"
    for kind in hookspecs.KINDS:
        assert f"## {kind}\n" in page


def test_every_part_of_the_parts_page_gives_an_equation_and_a_row_of_results():
    page = (ROOT / "docs" / "parts.md").read_text()
    text, table = page.split("## The standard run")
    kinds = re.findall(r"^## (\w+)$", text, flags=re.M)
    assert set(kinds) >= {"attentions", "feedforwards", "norms", "positions", "blocks", "stacks", "embeddings", "lm_heads", "initializations", "objectives"}
    for kind in kinds:
        for _, spec in Registry().parts(kind):
            if spec.distribution == "feeb":
                assert spec.equation, f"{kind} {spec.name}: give the spec an equation, in the symbols of docs/parts.md"
                assert spec.equation in text
                assert f"\n| {kind} | `{spec.name}` | " in table


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_inside_the_repository_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "extension-points.md"], ids=lambda p: p.name)
def test_yaml_recipes_on_the_page_load(page, tmp_path):
    for i, text in enumerate(blocks(page, "yaml")):
        if not re.search(r"^(stages|extends):", text, flags=re.M):
            continue
        path = tmp_path / f"snippet{i}.yaml"
        for plugin in re.findall(r"\./(\w+\.py)", text):
            code = next(b for b in blocks(page, "python") if b.startswith(f"# {plugin}"))
            (tmp_path / plugin).write_text(code)
        for pattern in [p.strip(' "') for paths in re.findall(r"paths: \[([^\]]*)\]", text) for p in paths.split(",")]:
            file = tmp_path / pattern.replace("**/", "").replace("*", "a")
            file = file if file.suffix else file / "a.txt"
            file.parent.mkdir(exist_ok=True)
            file.write_text("Some text.\n\nMore text.")
        text = text.replace("extends: experiments/", f"extends: {ROOT}/experiments/").replace("extends: ../experiments/", f"extends: {ROOT}/experiments/")
        path.write_text(text)
        for member in recipe.load_study(path):
            assert member.stages


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python") and p.name not in ("extension-points.md", "python-api.md")], ids=lambda p: p.name)
def test_python_on_the_page_runs(page, tmp_path):
    for i, text in enumerate(blocks(page, "python")):
        name = re.match(r"# (\w+\.py)", text)
        file = tmp_path / (name.group(1) if name else f"snippet{i}.py")
        file.write_text(text)
        done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr


def test_every_command_is_documented():
    done = subprocess.run(
        [sys.executable, "-m", "feeb_pipelines.cli", "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    )
    commands = re.findall(r"^│?\s*([a-z]+)\s{2,}\S", done.stdout, flags=re.M)
    assert len(commands) >= 10, done.stdout + done.stderr
    page = (ROOT / "docs" / "commands.md").read_text()
    for command in commands:
        assert f"`feeb {command}" in page, f"docs/commands.md does not mention feeb {command}"


def test_commands_that_the_pages_show_exist():
    done = subprocess.run(
        [sys.executable, "-m", "feeb_pipelines.cli", "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    )
    for page in PAGES:
        for command in re.findall(r"(?:^|`)(?:\.venv/bin/)?feeb ([a-z]+)", page.read_text(), flags=re.M):
            assert re.search(rf"^│?\s*{command}\s", done.stdout, flags=re.M), f"{page.name} shows `feeb {command}`, which does not exist"
