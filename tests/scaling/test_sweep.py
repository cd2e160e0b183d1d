"""Stage sweep: cells, ledger, law, a prediction made before its cell is run; kills, stops, divergence, failures, bad recipes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feeb_pipelines.cli import run_command
from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import DataError, Interrupted, RecipeError, StageFailed
from feebcore.files import read_json, read_jsonl, write_json
from feebcore.recipe import load
from feebcore.scaling.cells import measure_with, with_overrides
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.stage import check
from feebcore.study.executors import WarmWorkers, executing
from feebcore.study.ledger import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from small_sweep import VOCAB, recipe, section, sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("sweep")
    events: list[dict[str, Any]] = []

    def listen(row: dict[str, Any]) -> None:
        events.append(row | {"prediction": bool(list(root.glob("data/sweep/*/predictions.json")))})

    return root, sweep(root, listen), events


@pytest.fixture
def root(finished, tmp_path: Path) -> Path:
    """A folder whose workspace has the inputs of a sweep and nothing else."""
    for stage in ("download", "tokenizer", "shard"):
        shutil.copytree(finished[0] / "data" / stage, tmp_path / "data" / stage)
    return tmp_path


def test_every_cell_is_an_artifact_with_exact_counts(finished) -> None:
    root, artifact, _ = finished
    cells = read_jsonl(artifact.path / "runs.jsonl")
    assert [c["status"] for c in cells] == ["done"] * 7
    assert [c["heldout"] for c in cells] == [False] * 6 + [True]
    assert artifact.metrics["runs"] == 7
    measure = measure_with(section().train, VOCAB)
    for cell in cells:
        cost = measure(cell["overrides"])
        assert cell["N"] == {"total": cost.counts.total, "non_embedding": cost.counts.non_embedding, "matmul": cost.counts.matmul}
        assert cell["flops"] == pytest.approx(cell["D"] * cost.flops_per_token)
        assert cell["flops"] == pytest.approx(cell["budget"], rel=0.05)
        assert 0 < cell["loss"] < 5.6
        assert cell["bits_per_byte"] > 0
    losses = {a.name: a.metrics["val_loss"] for folder, a in Workspace(root / "data").all() if a is not None and a.stage == "pretrain"}
    assert losses == {f"tiny-{c['name']}": c["loss"] for c in cells}


def test_the_heldout_cell_is_predicted_before_it_is_run(finished) -> None:
    _, artifact, events = finished
    (prediction,) = read_json(artifact.path / "predictions.json")
    assert not prediction["begun"]
    ran = [e for e in events if e["kind"] == "log" and e["text"].startswith("run heldout")]
    assert len(ran) == 1
    assert prediction["written"] < ran[0]["time"]
    fitted = [e for e in events if e["kind"] == "log" and e["text"].startswith(("run 1", "run 3"))]
    assert len(fitted) == 6
    assert not any(e["prediction"] for e in fitted)
    heldout = read_json(artifact.path / "law.json")["heldout"][0]
    assert heldout["predicted"] == prediction["loss"]
    assert artifact.metrics["heldout_relative_error"] == pytest.approx(abs(heldout["predicted"] / heldout["measured"] - 1))
    near = next(c for c in read_jsonl(artifact.path / "runs.jsonl") if c["name"] == heldout["nearest"])
    assert near["overrides"]["architecture.d_model"] == 8
    assert near["budget"] == 3e7
    assert artifact.metrics["nearest_run_error"] == pytest.approx(abs(near["loss"] / heldout["measured"] - 1))


def test_the_law_is_reported_with_honest_flags_and_fits_cells_that_are_not_held_out(finished) -> None:
    law = finished[1].metrics["law"]
    assert {"form", "E", "A", "B", "alpha", "beta", "a", "intervals", "flags", "parameter_count"} <= law.keys()
    assert law["num_points"] == 6
    assert any(f.startswith("few_points") for f in law["flags"])
    document = read_json(finished[1].path / "law.json")
    assert len(document["points"]) == 7
    assert [c["budget"] for c in document["curves"]] == [1.5e7, 3e7, 6e7]
    assert len(document["isoflop"]["minima"]) == 2
    assert document["method"]["N"] == "non_embedding"


def test_progress_counts_to_the_end(finished) -> None:
    rows = [e for e in finished[2] if e["kind"] == "progress" and e["name"] == "runs"]
    assert rows[-1]["done"] == rows[-1]["total"]
    assert rows[-1]["finished"] == "7 of 7 runs"


def test_the_law_and_the_recipe_of_a_larger_run(finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(finished[0] / "data", tmp_path / "data")
    where = ["--workspace", str(tmp_path / "data")]
    assert run_command(["sweep", "report", "tiny", *where]) == 0
    assert "heldout-6e07-d8" in capsys.readouterr().out
    out = tmp_path / "large.json"
    assert run_command(["sweep", "recommend", "tiny", *where]) == 1
    assert "this sweep has no target" in capsys.readouterr().err
    assert run_command(["sweep", "recommend", "tiny", "--flops", "1e8", "--out", str(out), *where, "--json"]) == 0
    forecast = json.loads(capsys.readouterr().out)["forecast"]
    assert forecast["flops"] == pytest.approx(1e8, rel=0.05)
    large = load(out)
    assert list(large.stages) == ["download", "tokenizer", "shard", "pretrain"]
    assert large.stages["pretrain"].section.max_steps == forecast["overrides"]["max_steps"]
    assert run_command(["run", str(out), "--in-process", *where, "--json"]) == 0
    (ran,) = json.loads(capsys.readouterr().out)["runs"].values()
    assert ran["shard"]["status"] == "reused"
    assert ran["pretrain"]["metrics"]["flops"] == pytest.approx(1e8, rel=0.05)


def test_another_sweep_over_the_same_cells_trains_nothing(finished) -> None:
    """Another number of resamples is another sweep, of the same runs; that its held-out cell was there before is said."""
    logged: list[dict[str, Any]] = []
    other = sweep(finished[0], logged.append, bootstrap=120)
    assert other.fingerprint != finished[1].fingerprint
    assert [c["loss"] for c in read_jsonl(other.path / "runs.jsonl")] == [c["loss"] for c in read_jsonl(finished[1].path / "runs.jsonl")]
    assert len(list((finished[0] / "data" / "pretrain").glob("*/manifest.json"))) == 7
    assert not [e for e in logged if e["kind"] == "progress" and e["name"] != "runs"]
    assert read_json(other.path / "predictions.json")[0]["begun"]


@pytest.mark.slow
def test_a_sweep_killed_and_continued_by_two_warm_workers_ends_with_the_same_law(finished, root: Path) -> None:
    killed = subprocess.run([sys.executable, str(Path(__file__).parent / "small_sweep.py"), str(root), "2"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (path,) = root.glob("data/sweep/*/ledger.sqlite")
    with Ledger(path) as ledger:
        before = {r.name: r for r in ledger.records() if r.status == "done"}
    assert 2 <= len(before) < 7
    with WarmWorkers(2) as workers, executing(workers):
        artifact = sweep(root)
    with Ledger(path) as ledger:
        records = ledger.records()
    assert {r.name: r for r in records if r.name in before} == before
    assert (artifact.path / "law.json").read_bytes() == (finished[1].path / "law.json").read_bytes()
    assert not list(artifact.path.glob("*-wal"))


def test_gc_keeps_the_runs_that_a_law_stands_on(finished, tmp_path: Path) -> None:
    shutil.copytree(finished[0] / "data", tmp_path / "data")
    workspace = Workspace(tmp_path / "data")
    runs = [artifact for _, artifact in workspace.all(stage="pretrain") if artifact is not None]
    newer = [run.path.with_name(f"{run.name}-{'0' * 12}") for run in runs]
    for run, folder in zip(runs, newer, strict=True):
        shutil.copytree(run.path, folder)
        write_json(folder / "manifest.json", run.manifest | {"fingerprint": "0" * 12, "finished": run.manifest["finished"] + 1})
    assert not [folder for folder in workspace.gc(superseded=True, dry_run=True) if folder.parent.name == "pretrain"]
    assert {f"runs/{c['name']}" for c in read_jsonl(finished[1].path / "runs.jsonl")} <= finished[1].manifest["inputs"].keys()


def test_no_validation_text_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"validation split is empty.*split_modulus"):
        sweep(tmp_path, split_modulus=100_000)


def test_a_stop_is_obeyed_and_leaves_the_cell_to_be_taken_again(root: Path) -> None:
    import os

    def stop(row: dict[str, Any]) -> None:
        if row["kind"] == "log" and row["text"].startswith("run 1"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        sweep(root, stop)
    (path,) = root.glob("data/sweep/*/ledger.sqlite")
    with Ledger(path) as ledger:
        assert ledger.counts() == {"planned": 5, "leased": 0, "done": 1, "failed": 0, "diverged": 0}


def test_cells_take_no_ranks_of_their_own() -> None:
    many = section(train=section().train.model_dump() | {"parallel": {"strategy": "ddp", "ranks": 2}})
    assert any("one process" in problem for problem in check(many, None))  # type: ignore[arg-type]


def test_a_cell_that_diverges_is_kept_and_the_rest_goes_on(root: Path) -> None:
    sizes = [{"d_model": 4}, {"d_model": 8}, {"d_model": 16, "optimizer.lr": 1e20}]
    planner = {"name": "isoflop", "sizes": sizes, "budgets": [1e7, 1.5e7, 2e7], "min_steps": 5, "tolerance": 0.2}
    artifact = sweep(root, planner=planner)
    assert artifact.metrics["diverged"] == 3
    assert any(f.startswith("diverged_runs: 3") for f in artifact.metrics["law"]["flags"])
    assert artifact.metrics["law"]["num_points"] == 6
    assert artifact.metrics["heldout_relative_error"] is None
    assert [c["status"] for c in read_jsonl(artifact.path / "runs.jsonl")].count("diverged") == 3


def test_a_cell_that_fails_is_named_and_the_law_rests_on_the_others_until_it_is_there(finished, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feebcore.train import pretrain

    tokens = max(c["tokens"] for c in read_jsonl(finished[1].path / "runs.jsonl") if c["overrides"]["architecture.d_model"] == 16)

    def fails(section: Any, *args: Any, **options: Any) -> Any:
        if section.architecture.config.d_model == 16 and section.batch_size * section.seq_len * section.max_steps == tokens:
            raise MemoryError("no memory for this cell")
        return works(section, *args, **options)

    works = pretrain.train_model
    monkeypatch.setattr(pretrain, "train_model", fails)
    with pytest.raises(StageFailed, match=r"3e07-d16 failed 3 times: MemoryError: no memory for this cell.*law\.json is based on the other runs"):
        sweep(root)
    (law,) = root.glob("data/sweep/*/law.json")
    assert len(read_json(law)["points"]) == 6
    monkeypatch.undo()
    assert len(read_json(sweep(root).path / "law.json")["points"]) == 7


def test_cells_that_cannot_identify_a_law_are_reported_without_one(root: Path) -> None:
    planner = {"name": "isoflop", "sizes": [{"d_model": 4}, {"d_model": 8}], "budgets": [1e7], "min_steps": 5, "tolerance": 0.2}
    planner["heldout"] = [{"flops": 2e7, "size": {"d_model": 4}}]
    metrics = sweep(root, planner=planner).metrics
    assert metrics["law"]["E"] is None
    assert metrics["law"]["flags"][0].startswith("refused: 2 distinct runs cannot determine 5 parameters")
    assert metrics["heldout_relative_error"] is None
    assert metrics["nearest_run_error"] < 1


def test_bad_sizes_are_found_before_anything_runs() -> None:
    problems = check(section(planner={"name": "isoflop", "sizes": [{"d_model": 6, "num_heads": 4}, {"d_mdoel": 8}, {"seq_len": 4}], "budgets": [1e7]}), None)  # type: ignore[arg-type]
    assert any("d_model 6 does not divide into num_heads 4" in p for p in problems)
    assert any("'d_mdoel'" in p and "did you mean 'd_model'" in p for p in problems)
    assert any("seq_len must be the same for all runs" in p for p in problems)
    assert check(section(), None) == []  # type: ignore[arg-type]


def test_cells_share_the_sweeps_seed_and_its_defaults() -> None:
    config = SweepConfig.model_validate({"seed": 7, "planner": {"name": "isoflop", "sizes": [{"d_model": 8}], "budgets": [1]}})
    assert (config.train.seed, config.train.compile, config.train.checkpoint_every) == (7, "off", 0)
    assert [p.name for p in config.train.callbacks] == ["metrics"]
    again = SweepConfig.model_validate(config.model_dump(mode="json"))
    assert again == config
    with pytest.raises(ValidationError):
        SweepConfig.model_validate({"planner": {"name": "isoflop", "sizes": [{}], "budgets": []}})


def test_overrides_keep_everything_else_and_are_checked() -> None:
    train = section().train
    changed = with_overrides(train, {"architecture.d_model": 32, "optimizer.lr": 0.5, "max_steps": 3})
    assert changed.architecture.config.d_model == 32  # type: ignore[attr-defined]
    assert changed.architecture.config.num_layers == 1  # type: ignore[attr-defined]
    assert (changed.optimizer.config.lr, changed.max_steps, changed.seq_len) == (0.5, 3, train.seq_len)  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="did you mean 'batch_size'"):
        with_overrides(train, {"batch_sizes": 3})
    with pytest.raises(RecipeError, match="max_steps"):
        with_overrides(train, {"max_steps": 0})
    with pytest.raises(RecipeError, match="seq_len is 16, which has no key"):
        with_overrides(train, {"seq_len.x": 3})


def test_plan_lists_every_cell_of_a_sweep_that_is_not_finished(finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from feeb_pipelines.cli import run_command

    def planned(workspace: Path, *overrides: str) -> list[tuple[str, str, str]]:
        assert run_command(["plan", str(finished[0] / "r.yaml"), "--workspace", str(workspace), "--json", *overrides]) == 0
        return [(row["run"], row["stage"], row["status"]) for row in json.loads(capsys.readouterr().out)]

    recipe(finished[0])
    inputs = [("tiny", stage, "reuse") for stage in ("download", "tokenizer", "shard")]
    assert planned(finished[0] / "data") == [*inputs, ("tiny", "sweep", "reuse")]
    cells = [(c["name"], "pretrain", "reuse") for c in read_jsonl(finished[1].path / "runs.jsonl")]
    assert planned(finished[0] / "data", "--set", "sweep.bootstrap=130") == [*inputs, *cells, ("tiny", "sweep", "run")]
    nothing = planned(tmp_path)
    assert [row[1:] for row in nothing].count(("pretrain", "run")) == len(cells)


def test_another_law_is_fitted_to_a_finished_sweep(finished, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    from feeb_pipelines.cli import run_command

    assert run_command(["sweep", "fit", str(finished[1].path), "--law", "tied", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fit"]["form"] == "tied"
    assert document["fit"]["num_points"] == 6
    assert document["fit"]["parameter_count"] == "non_embedding"
    (heldout,) = document["heldout"]
    assert heldout["measured"] == finished[1].metrics["heldout"][0]["measured"]
    assert run_command(["sweep", "fit", str(finished[0] / "data")]) == 1
    assert "feeb: " in capsys.readouterr().err
