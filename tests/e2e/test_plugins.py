"""Plugins from outside the repository: packages that `feeb plugin new` made add parts, a file adds a stage; no edit of feeb."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from feeb_pipelines.cli import run_command
from feeb_pipelines.cli.plugin import PRISTINE, TEMPLATE, new, update
from feebcore.errors import FeebError
from feebcore.hookspecs import KINDS

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
INSTALLED = {"attention": "shared-key", "optimizer": "signsgd", "task": "reverse", "stage": "longest-text"}

pytestmark = pytest.mark.e2e


def page_block(starts_with: str, language: str = "python") -> str:
    """The code of docs/write-a-plugin.md that begins so: the document is what is tested."""
    text = (ROOT / "docs" / "write-a-plugin.md").read_text()
    return next(b for b in re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S) if b.startswith(starts_with))


def feeb(*arguments, env, cwd):
    return subprocess.run([sys.executable, "-m", "feeb_pipelines.cli", *map(str, arguments)], capture_output=True, text=True, env=env, cwd=cwd)


def pytest_of(packages, site, cwd, *options):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *options, *(str(p / "tests") for p in packages)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}, cwd=cwd)


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A package of each kind, as `feeb plugin new` makes it, by kind."""
    folder, made = tmp_path_factory.mktemp("packages"), {}
    for kind in KINDS:
        name = INSTALLED.get(kind.removesuffix("s"), f"my-{kind.removesuffix('s').replace('_', '-')}")
        assert run_command(["plugin", "new", name, "--kind", kind.removesuffix("s"), "--into", str(folder)]) == 0
        made[kind.removesuffix("s")] = folder / f"feeb-{name}"
    return made


@pytest.fixture(scope="module")
def site(packages, tmp_path_factory):
    """A folder into which pip has installed four of them."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-compile", "--target", str(target)]
    done = subprocess.run([*command, *(str(packages[kind]) for kind in INSTALLED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def installed(site):
    return os.environ | {"PYTHONPATH": str(site)}


@pytest.mark.slow
def test_new_packages_install_and_keep_their_contracts_on_the_first_run(packages, site, tmp_path):
    done = pytest_of([packages[kind] for kind in INSTALLED], site, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 40


@pytest.mark.slow
def test_every_other_kind_of_package_keeps_its_contract(packages, tmp_path, monkeypatch):
    """Built by their build backend and unpacked, which is what pip does with them; without the two slow checks, which test_contracts.py
    runs on the same base classes and the packages above run whole."""
    from hatchling.build import build_wheel

    others = {kind: folder for kind, folder in packages.items() if kind not in INSTALLED}
    for folder in others.values():
        monkeypatch.chdir(folder)
        zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))).extractall(tmp_path / "site")
    done = pytest_of(others.values(), tmp_path / "site", tmp_path, "-k", "not compile_parity and not two_rank_parity")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    listed = json.loads(feeb("parts", "--json", env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, cwd=tmp_path).stdout)
    assert {row["distribution"] for row in listed} == {"feeb", *(folder.name for folder in others.values())}


@pytest.mark.slow
def test_an_installed_package_adds_an_optimizer_and_a_file_adds_a_stage(installed, tmp_path):
    (tmp_path / "longest.py").write_text(page_block("# longest.py"))
    (tmp_path / "idea.yaml").write_text(
        f"extends: {HERE.parent}/pipelines/chain.yaml\nname: idea\nplugins: [./longest.py]\nstages: [download, longest, tokenizer, shard, pretrain]\n"
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


@pytest.mark.slow
def test_a_blocked_package_is_not_offered(installed, tmp_path):
    done = feeb("parts", "optimizers", "--json", env=installed | {"FEEB_PLUGINS_BLOCK": "feeb-signsgd"}, cwd=tmp_path)
    assert "signsgd" not in [row["name"] for row in json.loads(done.stdout)]


def test_the_page_shows_the_package_that_is_made(packages):
    text = (ROOT / "docs" / "write-a-plugin.md").read_text()
    shown = re.findall(r'^```python title="(.*?)"\n(.*?)^```', text, flags=re.M | re.S)
    assert len(shown) == 4
    for path, code in shown:
        assert (packages["task"] / path).read_text().rstrip() == code.rstrip(), path


def test_the_template_has_an_example_of_every_kind_and_no_other():
    assert {folder.name for folder in (TEMPLATE / "kinds").iterdir()} == {*KINDS}


def test_an_update_merges_the_template_into_what_the_author_changed(tmp_path, capsys):
    new("halves", kind="schedule", into=tmp_path)
    folder = tmp_path / "feeb-halves"
    with pytest.raises(FeebError, match="not a git checkout"):
        update(folder)

    def git(*arguments):
        subprocess.run(["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True)

    workflow, part = folder / ".github" / "workflows" / "tests.yml", folder / "feeb_halves" / "halves" / "halves.py"
    project, ignored, test = folder / "pyproject.toml", folder / ".gitignore", folder / "tests" / "test_contract.py"
    fresh = {path: path.read_text() for path in (workflow, project, test)}
    for path in (workflow, project, test):  # made by an older template, whose last line was another
        older = "".join(fresh[path].splitlines(keepends=True)[:-1]) + "# old\n"
        for copy in (path, folder / PRISTINE / path.relative_to(folder)):
            copy.write_text(older)
    project.write_text("# the author's\n" + project.read_text())
    test.write_text(test.read_text().replace("# old", "# the author's"))
    part.write_text("mine\n")
    ignored.unlink()
    git("init")
    git("add", "--all")
    with pytest.raises(FeebError, match="uncommitted"):
        update(folder)
    git("commit", "-m", "all")
    assert update(folder) == 1
    assert capsys.readouterr().err == "resolve the conflicts, marked <<<<<<< and >>>>>>>, in tests/test_contract.py\n"
    assert workflow.read_text() == fresh[workflow]
    assert project.read_text() == "# the author's\n" + fresh[project]
    assert "<<<<<<< yours\n# the author's\n" in test.read_text()
    assert part.read_text() == "mine\n"
    assert not ignored.exists()
    test.write_text(fresh[test])
    git("commit", "-a", "-m", "merged")
    assert update(folder) == 0
    assert subprocess.run(["git", "-C", str(folder), "status", "--porcelain"], capture_output=True, text=True).stdout == "", "nothing was left to do"
    with pytest.raises(FeebError, match="not made by"):
        update(tmp_path)


def test_names_that_cannot_be_used_are_refused(tmp_path):
    refused = {"Sort": "lower-case", "models": "installed already", "class": "keyword", "adamw": "optimizers/adamw exists"}
    for name, why in refused.items():
        with pytest.raises(FeebError, match=why):
            new(name, kind="optimizer", into=tmp_path)
    with pytest.raises(FeebError, match="did you mean 'attention'"):
        new("mine", kind="atention", into=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_copier_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "copier", None)
    with pytest.raises(FeebError, match=r"pip install 'feeb\[plugin\]'"):
        new("mine", kind="task", into=tmp_path)
