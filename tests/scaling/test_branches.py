"""Runs of one size that share the constant part of their schedule: exactly the runs trained one by one, for fewer FLOPs."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feeb_evals.planners.rectangle import ParametricGridConfig
from feeb_evals.planners.rectangle.rectangle import Rectangle
from feeb_pipelines.cli import run_command
from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import FeebError
from feebcore.files import read_json, read_jsonl
from feebcore.parts import resolve_part
from feebcore.scaling.cells import measure_with, scale_lr_of, shared_steps_of
from feebcore.scaling.planning import Situation
from feebcore.study.ledger import read_records

sys.path.insert(0, str(Path(__file__).parent))
from small_sweep import SECTION, VOCAB, killing, section, sweep

TRAIN: dict[str, Any] = SECTION["train"] | {"schedule": {"name": "wsd", "warmup_steps": 3}}
GRID: dict[str, Any] = {
    "name": "parametric_grid",
    "sizes": [{"d_model": 4}, {"d_model": 8}, {"d_model": 16}],
    "tokens": [64 * 20, 64 * 40, 64 * 80],
    "heldout": [{"size": {"d_model": 8}, "tokens": 64 * 120}],
    "min_steps": 10,
    "max_epochs": 100,
    "branches": True,
}
LADDER: dict[str, Any] = {
    "train": TRAIN,
    "planner": {
        "name": "ladder",
        "sizes": GRID["sizes"],
        "multiples": [1, 2, 4],
        "tokens_per_parameter": 3,
        "heldout": [{"size": {"d_model": 16}, "multiple": 6}],
        "min_steps": 5,
        "tolerance": 0.1,
        "max_epochs": 100,
        "branches": True,
    },
}


def pretrained(root: Path) -> dict[str, Artifact]:
    return {a.name: a for _, a in Workspace(root / "data").all(stage="pretrain") if a is not None}


def steps_kept(artifact: Artifact) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in (artifact.path / "checkpoints").glob("step-*"))


def plan(train: dict[str, Any], **options: Any) -> list[Any]:
    chosen = section(train=TRAIN | train).train
    law = resolve_part("laws", "chinchilla").build()
    known = Situation(measure_with(chosen, VOCAB), scale_lr_of(chosen), "total", law, shared_steps=shared_steps_of(chosen, VOCAB))
    return Rectangle(ParametricGridConfig.model_validate({k: v for k, v in (GRID | options).items() if k != "name"})).plan(known)


@pytest.fixture(scope="module")
def branched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("branched")
    return root, sweep(root, train=TRAIN, planner=GRID)


@pytest.fixture(scope="module")
def alone(branched: tuple[Path, Artifact], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    root = tmp_path_factory.mktemp("alone")
    for stage in ("download", "tokenizer", "shard"):
        shutil.copytree(branched[0] / "data" / stage, root / "data" / stage)
    return root, sweep(root, train=TRAIN, planner=GRID | {"branches": False})


@pytest.mark.slow
def test_branches_are_bit_for_bit_the_runs_trained_one_by_one(branched: tuple[Path, Artifact], alone: tuple[Path, Artifact]) -> None:
    mine, theirs = pretrained(branched[0]), pretrained(alone[0])
    assert len(mine) == 10
    assert mine.keys() == theirs.keys()
    for name, run in mine.items():
        assert (run.fingerprint, run.digest) == (theirs[name].fingerprint, theirs[name].digest)
        for key in ("val_loss", "final_loss", "flops", "tokens"):
            assert run.metrics[key] == theirs[name].metrics[key]
        losses = [{row["step"]: row["loss"] for row in read_jsonl(a.path / "metrics.jsonl") if "loss" in row} for a in (run, theirs[name])]
        assert losses[0]
        assert losses[0].items() <= losses[1].items()
    assert sum("began_at_step" in a.metrics for a in mine.values()) == 6
    assert not any("began_at_step" in a.metrics for a in theirs.values())
    ours, whole = (read_json(a.file("law.json")) for a in (branched[1], alone[1]))
    assert ours["fit"] == whole["fit"]
    assert whole["saved_flops"] == 0
    assert branched[1].metrics["flops"] == pytest.approx(alone[1].metrics["flops"] - ours["saved_flops"])
    assert ours["saved_flops"] == pytest.approx(sum(m.metrics["flops"] * m.metrics.get("began_at_step", 0) / m.metrics["steps"] for m in mine.values()))


def test_each_begins_where_its_decay_does_in_the_longest_of_its_size(branched: tuple[Path, Artifact]) -> None:
    runs = pretrained(branched[0])
    for width in (4, 8, 16):
        longest = runs[f"tiny-d{width}-5.12e03"]
        assert {17, 33} <= set(steps_kept(longest)), "the first step of a decay has the full rate"
        began = [runs[f"tiny-d{width}-{tokens}"].metrics["began_at_step"] for tokens in ("1.28e03", "2.56e03")]
        assert began == [17, 33]
        assert min(row["step"] for row in read_jsonl(runs[f"tiny-d{width}-2.56e03"].path / "metrics.jsonl")) > 33
    heldout = next(a for name, a in runs.items() if "heldout" in name)
    assert "began_at_step" not in heldout.metrics


def test_without_the_originals_checkpoint_a_run_trains_everything_itself(alone: tuple[Path, Artifact], tmp_path: Path) -> None:
    shutil.copytree(alone[0], tmp_path, dirs_exist_ok=True)
    lost = pretrained(tmp_path)["tiny-d8-2.56e03"]
    shutil.rmtree(lost.path)
    shutil.rmtree(tmp_path / "data" / "sweep")
    artifact = sweep(tmp_path, train=TRAIN, planner=GRID)
    again = pretrained(tmp_path)["tiny-d8-2.56e03"]
    assert (again.digest, again.metrics["val_loss"]) == (lost.digest, lost.metrics["val_loss"])
    assert "began_at_step" not in again.metrics
    assert "keeps no checkpoint of the 33 steps" in (again.path / "events.jsonl").read_text()
    assert artifact.metrics["saved_flops"] == 0


def test_the_commands_say_what_branches_save(branched: tuple[Path, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, artifact = branched
    where = ["--workspace", str(root / "data")]
    assert run_command(["sweep", "plan", str(root / "r.yaml"), *where, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["flops"] == pytest.approx(artifact.metrics["flops"])
    assert planned["saved_flops"] == pytest.approx(artifact.metrics["saved_flops"])
    assert [row["original"] for row in planned["runs"]][:3] == ["d4-5.12e03", "d4-5.12e03", None]
    assert run_command(["sweep", "plan", str(root / "r.yaml"), *where]) == 0
    share = 100 * planned["saved_flops"] / (planned["saved_flops"] + planned["flops"])
    assert f"{share:.0f}% of what the runs would take one by one" in capsys.readouterr().out
    assert run_command(["sweep", "report", "tiny", *where]) == 0
    assert f"{share:.0f}% of what the runs would take one by one" in capsys.readouterr().out
    assert run_command(["sweep", "status", "tiny", *where]) == 0
    assert "10 of 10 runs finished" in capsys.readouterr().out
    assert run_command(["sweep", "recommend", "tiny", "--flops", "1e8", "--out", str(tmp_path / "large.json"), *where]) == 0
    capsys.readouterr()
    low = str(0.9 * planned["flops"])
    assert run_command(["sweep", "run", str(root / "r.yaml"), "--budget", low, "--dry-run", *where]) == 1
    assert "more than the budget" in capsys.readouterr().err
    assert run_command(["sweep", "plan", str(root / "r.yaml"), "--budget", str(1.01 * planned["flops"]), *where]) == 0


@pytest.mark.parametrize(
    ("train", "options", "message"),
    [
        ({"schedule": {"name": "cosine", "warmup_steps": 3}}, {}, r"d4-1.28e03 \(20 steps\) and d4-5.12e03 \(80\) train only 4 steps alike"),
        ({"schedule": {"name": "wsd", "warmup_fraction": 0.1}}, {}, "train only 0 steps alike.*wsd with warmup_steps"),
        ({"data_order": "curriculum"}, {}, "train only 0 steps alike"),
        ({"momentum_schedule": "linear"}, {}, "train only 1 steps alike"),
        ({"schedule": {"name": "wsd", "warmup_steps": 30}}, {}, "d4-1.28e03: schedule.warmup_steps: 30 is more than max_steps 20"),
        ({}, {"tokens": [64 * 2.5, 64 * 5, 64 * 10]}, "no two runs of a size have the same batch_size, as min_steps 10 halves it"),
    ],
)
def test_runs_that_share_next_to_nothing_are_refused(train: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeebError, match=message):
        plan(train, **options)


def test_a_constant_rate_gives_the_shorter_runs_for_nothing() -> None:
    cells = plan({"schedule": {"name": "constant", "warmup_steps": 3}})
    assert [c.trained_flops / c.flops for c in cells] == [0, 0, 1] * 3 + [1]


@pytest.mark.slow
def test_a_ladder_killed_twice_ends_with_the_same_law(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished = sweep(whole, **LADDER)
    for runs in (2, 3):
        ended = subprocess.run([sys.executable, __file__, str(killed), str(runs)], check=False)
        assert ended.returncode == -signal.SIGKILL
        open_runs = [r for r in read_records(next((killed / "data" / "sweep").glob("*/ledger.sqlite"))) if r.status != "done"]
        assert open_runs
    assert sweep(killed, **LADDER).file("law.json").read_bytes() == finished.file("law.json").read_bytes()
    assert {name: a.digest for name, a in pretrained(killed).items()} == {name: a.digest for name, a in pretrained(whole).items()}
    assert run_command(["sweep", "plan", str(whole / "r.yaml"), "--workspace", str(whole / "data")]) == 0
    assert "heldout-d16-x6" in capsys.readouterr().out


if __name__ == "__main__":
    sweep(Path(sys.argv[1]), killing(int(sys.argv[2])), **LADDER)
