"""The wheel, installed in a clean environment, runs a recipe; it installs no generic module names."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    assert "feeb_pipelines/flows/pipeline.py" in names


def test_the_wheel_in_a_clean_environment_runs_a_recipe(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FEEB", "PREFECT"))} | {"DO_NOT_TRACK": "1"}
    feeb = tmp_path / "venv" / "bin" / "feeb"
    (tmp_path / "tiny.yaml").write_text((HERE / "tiny.yaml").read_text().replace("stages: [", "stages: [").replace("./corpus", str(HERE / "corpus")))
    workspace = tmp_path / "data"
    run(feeb, "run", "pretrain", tmp_path / "tiny.yaml", "--workspace", workspace, "--in-process", cwd=tmp_path, env=environment)
    rows = json.loads(run(feeb, "runs", "--json", "--workspace", workspace, cwd=tmp_path, env=environment))
    finished = {row["stage"]: row for row in rows if row["status"] == "finished"}
    assert set(finished) == {"download", "tokenizer", "shard", "pretrain"}
    assert finished["pretrain"]["metrics"]["val_bits_per_byte"] > 0
