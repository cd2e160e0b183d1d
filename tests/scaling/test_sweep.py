"""Stage sweep: cells, ledger, law, a prediction made before its cell is run; kills, stops, divergence, bad recipes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feebcore.errors import DataError, Interrupted, RecipeError
from feebcore.files import read_json, read_jsonl
from feebcore.scaling.cells import measure_with, with_overrides
from feebcore.scaling.config import SweepConfig
from feebcore.stages.sweep import check
from feebcore.studies import Ledger

sys.path.insert(0, str(Path(__file__).parent))
from small_sweep import VOCAB, inputs, section, sweep


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("sweep")
    events: list[dict[str, Any]] = []

    def listen(row: dict[str, Any]) -> None:
        events.append(row | {"prediction": (root / "out/prediction.json").exists()})

    return root, sweep(root, listener=listen), events


def test_every_cell_is_trained_and_recorded_with_exact_counts(finished) -> None:
    root, metrics, _ = finished
    cells = read_jsonl(root / "out/cells.jsonl")
    assert [c["status"] for c in cells] == ["done"] * 7
    assert [c["heldout"] for c in cells] == [False] * 6 + [True]
    assert metrics["cells"] == 7
    measure = measure_with(section().train, VOCAB)
    for cell in cells:
        cost = measure(cell["overrides"])
        assert cell["N"] == {"total": cost.counts.total, "non_embedding": cost.counts.non_embedding, "matmul": cost.counts.matmul}
        assert cell["flops"] == pytest.approx(cell["D"] * cost.flops_per_token)
        assert cell["flops"] == pytest.approx(cell["budget"], rel=0.05)
        assert 0 < cell["loss"] < 4.2
        assert cell["bits_per_byte"] > 0


def test_the_heldout_cell_is_predicted_before_it_is_run(finished) -> None:
    root, metrics, events = finished
    prediction = read_json(root / "out/prediction.json")
    assert prediction["already_run"] == []
    ran = [e for e in events if e["kind"] == "log" and e["text"].startswith("cell heldout")]
    assert len(ran) == 1
    assert prediction["written"] < ran[0]["time"]
    assert not any(e["prediction"] for e in events if e["kind"] == "log" and e["text"].startswith("cell 1e"))
    heldout = read_json(root / "out/law.json")["heldout"][0]
    assert heldout["predicted"] == prediction["cells"][0]["loss"]
    assert metrics["heldout_relative_error"] == pytest.approx(abs(heldout["predicted"] / heldout["measured"] - 1))
    near = next(c for c in read_jsonl(root / "out/cells.jsonl") if c["name"] == heldout["nearest"])
    assert near["overrides"]["architecture.d_model"] == 8
    assert near["budget"] == 2e7
    assert metrics["nearest_cell_error"] == pytest.approx(abs(near["loss"] / heldout["measured"] - 1))


def test_the_law_is_reported_with_honest_flags_and_fits_cells_that_are_not_held_out(finished) -> None:
    root, metrics, _ = finished
    law = metrics["law"]
    assert {"form", "E", "A", "B", "alpha", "beta", "a", "intervals", "flags", "parameter_count"} <= law.keys()
    assert law["num_points"] == 6
    assert any(f.startswith("few_points") for f in law["flags"])
    document = read_json(root / "out/law.json")
    assert len(document["points"]) == 7
    assert [c["budget"] for c in document["curves"]] == [1e7, 2e7, 4e7]
    assert len(document["isoflop"]["minima"]) == 2
    assert document["method"]["N"] == "non_embedding"


def test_progress_counts_to_the_end(finished) -> None:
    _, _, events = finished
    rows = [e for e in events if e["kind"] == "progress" and e["name"] == "cells"]
    assert rows[-1]["done"] == rows[-1]["total"]
    assert (rows[-1]["cells"], rows[-1]["of"]) == (7, 7)


def test_running_a_finished_sweep_again_trains_nothing_and_says_the_same(finished) -> None:
    root, metrics, _ = finished
    logged: list[str] = []
    assert sweep(root, listener=lambda row: logged.append(row.get("text", ""))) == metrics
    assert not any(text.startswith("cell ") for text in logged)


def test_a_killed_sweep_continues_at_the_first_unfinished_cell_to_the_same_result(finished, tmp_path: Path) -> None:
    whole, _, _ = finished
    killed = subprocess.run([sys.executable, str(Path(__file__).parent / "small_sweep.py"), str(tmp_path), "2"], check=False)
    assert killed.returncode == -signal.SIGKILL
    with Ledger(tmp_path / "out/ledger.sqlite") as ledger:
        before = {r.name: r for r in ledger.rows() if r.status == "done"}
    assert 2 <= len(before) < 7
    sweep(tmp_path)
    with Ledger(tmp_path / "out/ledger.sqlite") as ledger:
        rows = ledger.rows()
    assert {r.name: r for r in rows if r.name in before} == before
    assert all(r.attempts == 1 for r in rows if r.name in before)
    assert (tmp_path / "out/law.json").read_bytes() == (whole / "out/law.json").read_bytes()
    assert not list((tmp_path / "out").glob("*-wal"))


def test_a_kill_between_the_ledger_and_the_list_of_cells_loses_no_line(finished, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(finished[0], tmp_path / "again")
    (tmp_path / "again/out/cells.jsonl").unlink()
    sweep(tmp_path / "again")
    assert [c["status"] for c in read_jsonl(tmp_path / "again/out/cells.jsonl")] == ["done"] * 7


def test_no_held_out_text_is_said_at_once(finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from feebcore.data.store import TokenStore

    monkeypatch.setattr(TokenStore, "num_documents", 0)
    with pytest.raises(DataError, match=r"no document is held out.*split_modulus"):
        sweep(tmp_path)


def test_a_stop_is_obeyed_and_leaves_the_cell_to_be_taken_again(tmp_path: Path) -> None:
    from feebcore.artifacts import StageOutput
    from feebcore.stages.sweep import run

    given = inputs(tmp_path)
    (tmp_path / "out").mkdir()
    out = StageOutput(tmp_path / "out")
    out.stop_requested = True
    with pytest.raises(Interrupted):
        run(section(), given, out)
    out.close()
    with Ledger(tmp_path / "out/ledger.sqlite") as ledger:
        assert {r.status for r in ledger.rows()} == {"planned"}


@pytest.mark.parametrize("keep", ["models", "checkpoints"])
def test_a_study_keeps_what_it_is_told_to(finished, tmp_path: Path, keep: str) -> None:
    planner = {"name": "isoflop", "sizes": [{"d_model": 4}, {"d_model": 8}, {"d_model": 16}], "budgets": [1e7], "min_steps": 10, "tolerance": 0.05}
    sweep(tmp_path, section(keep=keep, planner=planner))
    cells = sorted((tmp_path / "out" / "cells").iterdir())
    assert len(cells) == 3
    assert all((cell / "model" / "model.safetensors").is_file() for cell in cells)
    assert all((cell / "checkpoints").is_dir() == (keep == "checkpoints") for cell in cells)
    first = {c["name"]: c["loss"] for c in read_jsonl(finished[0] / "out/cells.jsonl")}
    assert {c["name"]: c["loss"] for c in read_jsonl(tmp_path / "out/cells.jsonl")}.items() <= first.items(), "keeping changes no result"


def test_cells_take_no_ranks_of_their_own() -> None:
    many = section(train=section().train.model_dump() | {"parallel": {"strategy": "ddp", "ranks": 2}})
    assert any("one process each" in problem for problem in check(many, None))  # type: ignore[arg-type]


def test_a_cell_that_diverges_is_censored_and_the_rest_goes_on(tmp_path: Path) -> None:
    sizes = [{"d_model": 4}, {"d_model": 8}, {"d_model": 16, "optimizer.lr": 1e20}]
    planner = {"name": "isoflop", "sizes": sizes, "budgets": [1e7, 2e7, 3e7], "min_steps": 10, "tolerance": 0.05}
    metrics = sweep(tmp_path, section(planner=planner))
    assert metrics["censored"] == 3
    assert any(f.startswith("censored_cells: 3") for f in metrics["law"]["flags"])
    assert metrics["law"]["num_points"] == 6
    assert metrics["heldout_relative_error"] is None
    assert [c["status"] for c in read_jsonl(tmp_path / "out/cells.jsonl")].count("censored") == 3


def test_cells_that_cannot_identify_a_law_are_reported_without_one(tmp_path: Path) -> None:
    planner = {"name": "isoflop", "sizes": [{"d_model": 4}, {"d_model": 8}], "budgets": [1e7], "min_steps": 10, "tolerance": 0.05}
    planner["heldout"] = [{"flops": 2e7, "size": {"d_model": 4}}]
    metrics = sweep(tmp_path, section(planner=planner))
    assert metrics["law"]["E"] is None
    assert metrics["law"]["flags"][0].startswith("refused: 2 points cannot determine 5 parameters")
    assert metrics["heldout_relative_error"] is None
    assert metrics["nearest_cell_error"] < 1


def test_bad_sizes_are_found_before_anything_runs() -> None:
    problems = check(section(planner={"name": "isoflop", "sizes": [{"d_model": 6, "num_heads": 4}, {"d_mdoel": 8}, {"seq_len": 4}], "budgets": [1e7]}), None)  # type: ignore[arg-type]
    assert any("d_model 6 does not divide into num_heads 4" in p for p in problems)
    assert any("'d_mdoel'" in p and "did you mean 'd_model'" in p for p in problems)
    assert any("seq_len must be the same for all cells" in p for p in problems)
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
