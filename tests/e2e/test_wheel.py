"""The wheel, in an environment that has what the wheel declares and nothing else, runs a recipe; it installs no generic module names.

The dependencies are not downloaded anew: those that `make install` resolved from the same declaration are linked into the
environment, one by one, so that a module which feeb uses and does not declare is missing there.
"""

import json
import os
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (file,) = folder.glob("*.whl")
    return file


def test_the_wheel_holds_only_feebs_own_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert all(top.startswith("feeb") for top in tops), tops
    assert "feebcore/hookspecs.py" in names
    assert "feeb_models/__init__.py" in names
    assert "feeb_pipelines/plugin_template/copier.yml" in names
    assert any(name.startswith("feeb_pipelines/plugin_template/package/.github/") for name in names)
    assert "feeb_pipelines/flows/stages.py" in names


def declared(distributions: list[Distribution], extra: str = "") -> dict[str, Distribution]:
    """The installed distributions that these require, and those that they require in turn, by name."""
    needed: dict[str, Distribution] = {}
    waiting = [(one, extra) for one in distributions]
    seen = set()
    while waiting:
        owner, extra = waiting.pop()
        for text in owner.requires or ():
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
                continue
            for wanted in ("", *requirement.extras):
                key = (canonicalize_name(requirement.name), wanted)
                if key not in seen:
                    seen.add(key)
                    needed[key[0]] = distribution(requirement.name)
                    waiting.append((needed[key[0]], wanted))
    return needed


def clean_environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel and links to what it declares; returns its python."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python3*/site-packages")
    (information,) = site.glob("feeb-*.dist-info")
    for installed in declared([Distribution.at(information)]).values():
        for name in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(installed.locate_file(name))
    return python


@pytest.mark.slow
def test_the_wheel_in_a_clean_environment_runs_a_recipe(wheel, tmp_path):
    python = clean_environment(tmp_path / "venv", wheel)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FEEB", "PREFECT"))} | {"DO_NOT_TRACK": "1"}
    absent = "import importlib.util as u, feebcore; print(feebcore.__file__, *(u.find_spec(m) for m in ('pytest', 'transformers', 'hypothesis')))"
    where, *others = run(python, "-c", absent, cwd=tmp_path, env=environment).split()
    assert where.startswith(str(tmp_path))
    assert others == ["None"] * 3
    feeb = tmp_path / "venv" / "bin" / "feeb"
    (tmp_path / "tiny.yaml").write_text((HERE.parent / "pipelines" / "chain.yaml").read_text())
    workspace = tmp_path / "data"
    run(feeb, "run", "pretrain", tmp_path / "tiny.yaml", "--workspace", workspace, "--in-process", cwd=tmp_path, env=environment)
    rows = json.loads(run(feeb, "runs", "--json", "--workspace", workspace, cwd=tmp_path, env=environment))
    finished = {row["stage"]: row for row in rows if row["status"] == "finished"}
    assert set(finished) == {"download", "tokenizer", "shard", "pretrain"}
    assert finished["pretrain"]["metrics"]["val_bits_per_byte"] > 0
    run(python, "-c", "import prefect.server.api.server, feeb_pipelines.flows", cwd=tmp_path, env=environment)
