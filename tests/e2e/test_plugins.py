"""Plugins from outside the repository: a package adds an optimizer, a file adds a stage; no edit of feeb."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

pytestmark = pytest.mark.e2e


def page_block(starts_with: str, language: str = "python") -> str:
    """The code of docs/write-a-plugin.md that begins so: the document is what is tested."""
    text = (ROOT / "docs" / "write-a-plugin.md").read_text()
    return next(b for b in re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S) if b.startswith(starts_with))


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The documented package, pip-installed into a folder of its own; returns the environment that sees it."""
    source = tmp_path_factory.mktemp("feeb-signsgd")
    project = page_block("[project]", "toml")
    build = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n\n[tool.hatch.build.targets.wheel]\ninclude = ["feeb_signsgd.py"]\n'
    (source / "pyproject.toml").write_text(project + "\n" + build)
    (source / "feeb_signsgd.py").write_text(page_block("# feeb_signsgd.py"))
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), str(source)], capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return os.environ | {"PYTHONPATH": str(target)}


def feeb(*arguments, env, cwd):
    return subprocess.run([sys.executable, "-m", "feeb_pipelines.cli", *map(str, arguments)], capture_output=True, text=True, env=env, cwd=cwd)


def test_an_installed_package_adds_an_optimizer_and_a_file_adds_a_stage(installed, tmp_path):
    (tmp_path / "longest.py").write_text(page_block("# longest.py"))
    (tmp_path / "idea.yaml").write_text(
        f"extends: {HERE}/tiny.yaml\nname: idea\nplugins: [./longest.py]\nstages: [download, longest, tokenizer, shard, pretrain]\n"
        "longest: {count: 2}\npretrain: {max_steps: 3, optimizer: {name: signsgd, lr: 0.001}}\n"
    )
    workspace = tmp_path / "data"
    listed = json.loads(feeb("parts", "optimizers", "--json", env=installed, cwd=tmp_path).stdout)
    assert any(row["name"] == "signsgd" and row["distribution"] == "feeb-signsgd" for row in listed)
    done = feeb("run", "idea.yaml", "--workspace", workspace, "--in-process", env=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {r["stage"]: r for r in json.loads(feeb("runs", "--json", "--workspace", workspace, env=installed, cwd=tmp_path).stdout)}
    assert rows["longest"]["metrics"]["longest_bytes"] > 0
    assert rows["pretrain"]["status"] == "finished"
    manifest = json.loads((Path(rows["pretrain"]["path"]) / "manifest.json").read_text())
    assert any(p["part"] == "feeb-signsgd/signsgd" and p["version"] == "0.1.0" for p in manifest["plugins"])


def test_a_blocked_package_is_not_offered(installed, tmp_path):
    done = feeb("parts", "optimizers", "--json", env=installed | {"FEEB_PLUGINS_BLOCK": "feeb-signsgd"}, cwd=tmp_path)
    assert "signsgd" not in [row["name"] for row in json.loads(done.stdout)]
