"""A stage that the house does not know, in a file next to its recipe, is planned, run, evaluated, reported, opened and deployed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feebcore.api import open_run
from feebcore.artifacts import Workspace
from feebcore.recipe import load
from feebcore.run.build import run_all
from feebcore.run.plan import plan

PLUGIN = '''
"""Stage `dpo`: makes a model of the nearest model before it."""

import feebcore as feeb


class DpoConfig(feeb.StageConfig):
    noise: float = 0.05
    device: feeb.Execution[str] = "cpu"


def run(section, inputs, out):
    import torch
    from feebcore.files import read_json
    from feebcore.model.io import load_model, save_model
    from feebcore.parts import resolve_part

    source = inputs["model"].file("model")
    model = load_model(source, section.device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(section.noise * torch.randn(parameter.shape, generator=generator))
    architecture = resolve_part("architectures", read_json(source / "model.json")["architecture"])
    save_model(out.path / "model", model, architecture, source / "tokenizer")
    out.content("model/*")
    return {"noise": section.noise}


@feeb.hookimpl
def feeb_stages():
    yield feeb.StageSpec("dpo", DpoConfig, build="their_dpo:run", needs=(feeb.Need("model"),), makes=("model",), process="worker", summary="Adds noise.")
'''


@pytest.fixture
def recipe(tiny_chain, tmp_path: Path):
    """A recipe with the new stage, and a copy of the tiny chain's workspace, which other tests use too."""
    workspace, _ = tiny_chain
    shutil.copytree(workspace.root, tmp_path / "data")
    (tmp_path / "their_dpo.py").write_text(PLUGIN)
    base = workspace.root.parent / "tiny.yaml"
    stages = "[download, tokenizer, shard, pretrain, dpo, evaluate, report]"
    (tmp_path / "dpo.yaml").write_text(f"name: theirs\nextends: {base}\nplugins: [./their_dpo.py]\nstages: {stages}\n")
    sys.modules.pop("their_dpo", None)
    yield tmp_path / "dpo.yaml"
    sys.modules.pop("their_dpo", None)


@pytest.mark.slow
def test_a_strangers_stage_is_planned_run_evaluated_reported_and_opened(tiny_chain, recipe: Path) -> None:
    workspace, artifacts = Workspace(recipe.parent / "data"), tiny_chain[1]
    loaded = load(recipe)
    statuses = {item.stage: item.status for item in plan(loaded, workspace)}
    assert statuses == {"download": "reuse", "tokenizer": "reuse", "shard": "reuse", "pretrain": "reuse", "dpo": "run", "evaluate": "run", "report": "run"}
    built = run_all(loaded, workspace)
    assert built["dpo"].makes == ("model",)
    scores = built["evaluate"].metrics["bits_per_byte"]
    assert set(scores) == {"pretrain", "dpo"}
    assert scores["pretrain"] == artifacts["evaluate"].metrics["bits_per_byte"]["pretrain"]
    assert scores["dpo"] != scores["pretrain"]
    page = (built["report"].path / "report.html").read_text()
    assert built["dpo"].fingerprint in page
    assert json.loads((built["report"].path / "summary.json").read_text())["metrics"]["dpo"] == {"noise": 0.05}
    run = open_run("theirs", workspace.root)
    assert (run.stage, run.fingerprint) == ("dpo", built["dpo"].fingerprint)
    assert isinstance(run.generate("def f", max_new_tokens=4), str)


@pytest.mark.e2e
@pytest.mark.slow
def test_a_strangers_stage_runs_in_a_flow(recipe: Path) -> None:
    workspace = Workspace(recipe.parent / "data")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FEEB_"))} | {"DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "feeb_pipelines.cli", "run", "dpo", str(recipe), "--set", "dpo.noise=0.01", "--workspace", str(workspace.root), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (stages,) = json.loads(done.stdout)["runs"].values()
    assert {stage: row["status"] for stage, row in stages.items()} == dict.fromkeys(("download", "tokenizer", "shard", "pretrain"), "reused") | {"dpo": "built"}
