"""Whole comparisons of models of a few thousand parameters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feebcore import api
from feebcore.artifacts import StageOutput, Workspace
from feebcore.compare import report
from feebcore.compare import run as run_module
from feebcore.compare.plan import Settings
from feebcore.compare.run import compare
from feebcore.errors import Diverged, RecipeError, StageFailed
from feebcore.files import read_json, write_json
from feebcore.run.processes import _failure
from feebcore.study.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from small_compare import QUICK, recipes, run


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, artifact, events) of a comparison at equal FLOPs, with a learning-rate search that only reports and a curve."""
    root = tmp_path_factory.mktemp("compare")
    events: list[dict] = []
    artifact = run(root, on_progress=events.append, seeds=2, budget="flops", tune_lr="report", lr_factors=(0.5, 1.0), curve=(2.0,))
    return root, artifact, events


@pytest.fixture(scope="module")
def result(done):
    return read_json(done[1].file("result.json"))


def test_the_difference_is_that_of_the_runs_artifacts(done, result):
    workspace = done[0] / "data"
    losses = {(r["recipe"], r["seed"]): api.open_run(r["path"], workspace).metrics["val_bits_per_byte"] for r in result["runs"] if r["role"] == "run"}
    (variant,) = result["variants"]
    assert variant["difference"] == pytest.approx(sum(losses["wide", s] - losses["base", s] for s in (0, 1)) / 2)
    assert result["verdict"] == [variant["sentence"]]
    page = (done[1].path / "page.md").read_text()
    assert variant["sentence"] in page
    assert f"{variant['difference']:+.4f}" in page
    assert (done[1].path / "verdict.txt").read_text().startswith(variant["sentence"])
    assert all((done[1].path / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("figure", "curves"))
    curves = json.loads(re.findall(r'class="chart-data">(.*?)</script>', (done[1].path / "page.html").read_text(), re.DOTALL)[1])
    names = [s["name"] for s in curves[0]["series"] if "validation" not in s["name"]]
    assert names == [c["name"] for c in result["recipes"] for _ in c["seeds"]]


def test_counted_flops_of_the_runs_are_equal_to_the_nearest_step(result):
    flops = {r["recipe"]: r["flops"] for r in result["runs"] if r["role"] == "run"}
    wide = next(s for s in result["recipes"] if s["name"] == "wide")
    assert wide["steps"] < 16
    assert abs(flops["wide"] - flops["base"]) <= 0.5 * flops["wide"] / wide["steps"] * (1 + 1e-9)
    assert abs(flops["wide"] / flops["base"] - 1) < 0.01
    assert not any("not exactly matched" in note for note in result["notes"])


def test_a_budget_that_came_out_otherwise_is_said():
    told = {"a": {"name": "a", "training_seconds": 10.0}, "b": {"name": "b", "training_seconds": 11.0}}
    (note,) = report._uneven(told, "a", Settings(budget="time"))
    assert "+10.0% training time" in note


def test_pairs_share_their_seeds_and_alternate(result):
    runs = [(r["recipe"], r["seed"]) for r in result["runs"] if r["role"] == "run"]
    assert runs == [("base", 0), ("wide", 0), ("wide", 1), ("base", 1)]


def test_the_search_reports_and_keeps_the_learning_rates(done, result):
    for side in result["recipes"]:
        assert side["lr"]["factor"] == 1.0
        assert {t["factor"] for t in side["lr"]["tried"]} >= {0.5, 1.0}
    trial = next(r for r in result["runs"] if r["role"] == "lr" and r["factor"] == 0.5)
    section = api.open_run(trial["path"], done[0] / "data").section
    assert (section["optimizer"]["lr"], section["max_steps"], section["schedule"]["warmup_steps"]) == (0.01, 4, 1)


def test_the_curve_is_the_baseline_at_other_budgets(result):
    (point,) = result["curve"]
    base = result["recipes"][0]
    assert point["factor"] == 2.0
    assert point["flops"] == pytest.approx(2 * base["flops"])
    run = next(r for r in result["runs"] if r["role"] == "curve")
    assert run["max_steps"] == 32


def test_the_manifest_holds_every_run_so_that_none_is_cleaned_up(done, result):
    inputs = {i["path"] for i in done[1].manifest["inputs"].values()}
    assert {str(Path(r["path"]).relative_to(done[0] / "data")) for r in result["runs"]} <= inputs
    assert not Workspace(done[0] / "data").gc(superseded=True, dry_run=True)


def test_a_second_call_does_nothing(done, monkeypatch):
    monkeypatch.setattr(run_module, "run_study", None)
    assert run(done[0], seeds=2, budget="flops", tune_lr="report", lr_factors=(0.5, 1.0), curve=(2.0,)).fingerprint == done[1].fingerprint


def test_runs_are_shared_between_comparisons(done):
    events: list[dict] = []
    run(done[0], on_progress=events.append, budget="flops")
    assert not [e for e in events if e["kind"] == "progress"]  # no run was trained again


def test_progress_is_told(done):
    texts = [e["text"] for e in done[2] if e["kind"] == "log"]
    assert sum("bits per byte," in text for text in texts) == len(read_json(done[1].file("result.json"))["runs"])


def test_the_command_prints_json_and_a_table(done, capsys):
    from feeb_pipelines.cli import run_command

    command = ["compare", str(done[0] / "base.yaml"), str(done[0] / "wide.yaml"), "--seeds", "2", "--budget", "flops", "--no-tune-lr", "--curve", "none"]
    command += ["--in-process", "--workspace", str(done[0] / "data")]
    assert run_command([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["baseline"] == "base"
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    assert printed["verdict"][0] in shown
    assert "nothing to do" in shown


def test_plan_lists_the_runs_of_a_comparison(done, result, tmp_path, capsys):
    from feeb_pipelines.cli import run_command

    command = ["compare", str(done[0] / "base.yaml"), str(done[0] / "wide.yaml"), "--seeds", "2", "--budget", "flops", "--plan", "--json", "--workspace"]
    assert run_command([*command, str(done[0] / "data"), "--keep-lr", "--curve", "2"]) == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out) if row["stage"] == "pretrain"}
    tried = {side["name"]: {t["factor"] for t in side["lr"]["tried"]} for side in result["recipes"]}
    missing = {f"{name}-lr2-seed0" for name, factors in tried.items() if 2.0 not in factors}  # the defaults try 0.5, 1 and 2
    assert {name for name, row in rows.items() if row["status"] == "run"} == missing
    assert {"base-lr2-seed0", "wide-lr2-seed0"} <= set(rows)
    paths = {r["name"]: r["path"] for r in result["runs"]}
    assert all(row["path"] == paths[name] for name, row in rows.items() if row["status"] == "reuse")
    assert run_command([*command, str(tmp_path), "--no-tune-lr", "--curve", "none"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out) if row["stage"] == "pretrain"]
    assert [(row["run"], row["status"]) for row in rows] == [(f"{n}-seed{s}", "run") for n, s in (("base", 0), ("wide", 0), ("wide", 1), ("base", 1))]
    assert not (tmp_path / "pretrain").exists()


@pytest.mark.slow
def test_a_killed_comparison_continues_and_ends_the_same(result, tmp_path):
    script = Path(__file__).parent / "small_compare.py"
    killed = subprocess.run([sys.executable, str(script), str(tmp_path), "2"], check=False)
    assert killed.returncode == -9
    ledger = next((tmp_path / "data" / "compare").glob("*/ledger.sqlite"))
    with Ledger(ledger) as rows:
        assert sorted(r.status for r in rows.records()) == ["done", "done", "leased", "planned"]
    finished = {p: p.stat().st_mtime_ns for p in (tmp_path / "data" / "pretrain").glob("*/manifest.json")}
    assert len(finished) == 2
    continued = run(tmp_path, budget="flops")
    with Ledger(ledger) as rows:
        assert [r.attempts for r in rows.records()] == [1, 1, 2, 1]
    assert all(p.stat().st_mtime_ns == when for p, when in finished.items())
    whole = [side["bits_per_byte"] for side in result["recipes"]]
    assert [side["bits_per_byte"] for side in read_json(continued.file("result.json"))["recipes"]] == whole


def test_a_side_that_diverges_is_counted_and_never_called_better(done, tmp_path):
    sides = recipes(done[0], "optimizer: {lr: 1.0e+9}")
    artifact = compare(sides, Settings(**QUICK), Workspace(done[0] / "data"))
    recipes(done[0])
    result = read_json(artifact.file("result.json"))
    (variant,) = result["variants"]
    assert (variant["kind"], variant["diverged"], variant["difference"]) == ("cannot tell", 2, None)
    assert "2 of 2 runs of wide diverged" in variant["sentence"]
    assert [d["seed"] for d in result["recipes"][1]["diverged"]] == [0, 1]


def test_a_worker_that_diverged_is_told_from_one_that_failed(tmp_path):
    """In a process of its own a run that diverges ends with a record of why; another failure must stop the comparison."""
    place = tmp_path / "pretrain" / "run"
    place.mkdir(parents=True)
    (place / "log.txt").write_text("")
    out = StageOutput(place)
    for said, expected in (("Diverged", Diverged), ("FeebError", StageFailed), ("RuntimeError", StageFailed)):
        write_json(place / "result.json", {"error": said, "message": "loss nan", "traceback": "", "time": 0.0})
        assert type(_failure(place, [1], set(), out)) is expected
    out.close()


def test_a_recipe_beside_itself_has_other_seeds_and_says_so(done):
    sides = recipes(done[0], names=("base", "base"))
    result = read_json(compare(sides, Settings(**QUICK), Workspace(done[0] / "data")).file("result.json"))
    assert [s["seeds"] for s in result["recipes"]] == [[0, 1], [2, 3]]
    assert any("same recipe" in note for note in result["notes"])


def test_a_warmup_that_does_not_fit_is_an_error_before_anything_is_built(tmp_path):
    sides = recipes(tmp_path, "batch_size: 32", "schedule: {warmup_steps: 8}")
    with pytest.raises(RecipeError, match="wide: with 2 steps"):
        compare(sides, Settings(**QUICK), Workspace(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
