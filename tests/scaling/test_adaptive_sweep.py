"""A sweep from a budget and a target: real runs, killed and continued, and what `feeb sweep` says of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feeb_pipelines.cli import run_command
from feebcore.artifacts import Artifact, Workspace
from feebcore.files import read_json
from feebcore.run.build import run_all
from feebcore.study.ledger import read_predictions, read_records

sys.path.insert(0, str(Path(__file__).parent))
from small_sweep import SECTION, killing, recipe, sweep

BUDGET = 5e9
ADAPTIVE: dict[str, Any] = {
    "train": SECTION["train"]
    | {"optimizer": {"name": "adamw", "lr": 0.1}, "architecture": {"name": "transformer", "num_layers": 1, "num_heads": 2, "lm_head": "tied"}},
    "planner": {
        "name": "adaptive",
        "budget": BUDGET,
        "sizes": [{"d_model": width} for width in (8, 12, 16, 20, 24, 28, 32)],
        "max_epochs": 100,
        "min_steps": 10,
        "min_tokens_per_parameter": 0.05,
        "budget_tolerance": 0.1,
    },
    "law": "posterior",
    "target": 2 * BUDGET,
    "bootstrap": 100,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("adaptive")
    return root, sweep(root, **ADAPTIVE)


def test_every_run_from_the_third_rung_on_was_predicted_before_it_started(finished: tuple[Path, Artifact]) -> None:
    _, artifact = finished
    predictions, records = read_predictions(artifact.path / "ledger.sqlite"), read_records(artifact.path / "ledger.sqlite")
    assert all(record.status == "done" for record in records)
    assert {r.name for r in records if r.name.startswith(("rung3", "rung4", "extra", "heldout"))} == predictions.keys()
    for name, prediction in predictions.items():
        assert not prediction["begun"]
        assert name not in prediction["points"]
        events = next(artifact.path.parents[1].glob(f"pretrain/tiny-{name}-*")) / "recipe.json"
        assert prediction["written"] <= events.stat().st_mtime
    law = read_json(artifact.file("law.json"))
    assert sum(r.flops for r in records) <= BUDGET
    assert {o["name"] for o in law["predicted"]} | {o["name"] for o in law["heldout"]} == predictions.keys()


def test_killed_twice_it_ends_with_the_same_law(finished: tuple[Path, Artifact], tmp_path: Path) -> None:
    for runs in (5, 9):
        killed = subprocess.run([sys.executable, __file__, str(tmp_path), str(runs)], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert sweep(tmp_path, **ADAPTIVE).file("law.json").read_bytes() == finished[1].file("law.json").read_bytes()


def test_the_commands_show_it_and_recommend_nothing_without_a_law(finished: tuple[Path, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = finished
    where = ["--workspace", str(root / "data")]
    assert run_command(["sweep", "status", "tiny", *where, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert {row["status"] for row in rows} == {"done"}
    assert [row["name"] for row in rows if row["heldout"]] == [rows[-1]["name"]]
    for command in ("status", "report"):
        assert run_command(["sweep", command, "tiny", *where]) == 0
        assert rows[-1]["name"] in capsys.readouterr().out
    assert run_command(["sweep", "recommend", "tiny", "--flops", "1e10", *where]) == 1
    assert "the loss does not fall with N" in capsys.readouterr().err  # forty bytes of text, known by heart


def test_the_plan_is_shown_before_anything_runs(finished: tuple[Path, Artifact], capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = finished
    where = ["--workspace", str(root / "data")]
    assert run_command(["sweep", "plan", str(root / "r.yaml"), "--budget", "8e9", "--target", "1e10", *where, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["flops"] <= 8e9
    assert plan["seconds"] > 0
    assert plan["runs"][-1]["heldout"]
    assert run_command(["sweep", "plan", str(root / "r.yaml"), "--hours", "0.05", "--price", "2", *where]) == 0
    assert "at 2 an hour" in capsys.readouterr().out
    bare = root / "bare.yaml"  # without a planner it is the one that --budget means, and --set adds to it
    bare.write_text("extends: r.yaml\nname: tiny\nsweep: {planner: null}\n")
    assert run_command(["sweep", "plan", str(bare), "--budget", "5e9", "--set", "sweep.planner.max_epochs=100", *where]) == 1
    assert "500 steps" in capsys.readouterr().err
    assert run_command(["sweep", "plan", str(root / "r.yaml"), "--budget", "1e9", "--hours", "1", *where]) == 1
    assert "--budget or --hours, not both" in capsys.readouterr().err
    assert run_command(["sweep", "run", str(root / "r.yaml"), "--budget", "1e9", "--target", "1e15", "--dry-run", *where]) == 1
    assert "raise the budget" in capsys.readouterr().err


def test_a_plan_says_how_long_it_takes_before_anything_was_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = recipe(tmp_path, **ADAPTIVE)
    run_all(made, Workspace(tmp_path / "data"), ["shard"])
    where = [str(tmp_path / "r.yaml"), "--workspace", str(tmp_path / "data"), "--json"]
    assert run_command(["sweep", "plan", "--budget", "5e9", *where]) == 0
    plan = json.loads(capsys.readouterr().out)
    rates = {run["flops"] / run["seconds"] for run in plan["runs"]}
    assert 0 < min(rates) < max(rates) < 1e13
    assert plan["seconds"] == pytest.approx(sum(run["seconds"] for run in plan["runs"]))
    assert run_command(["sweep", "plan", "--hours", "0.05", *where]) == 0
    assert 0.5 < json.loads(capsys.readouterr().out)["seconds"] / 180 < 2
    assert not list((tmp_path / "data").glob("pretrain/*"))  # steps that were timed leave nothing


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), killing(int(sys.argv[2])), **ADAPTIVE)
