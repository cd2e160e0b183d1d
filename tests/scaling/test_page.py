"""The page of a sweep: numbers of its own files, nothing empty, nothing claimed that was not shown."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from feeb_pipelines.cli import run_command
from feebcore.errors import DataError
from feebcore.files import read_json, read_jsonl, write_json
from feebcore.parts import resolve_part
from feebcore.report.sweep_figures import pictures
from feebcore.report.sweep_page import write_page
from feebcore.report.sweep_sections import NOT_RECORDED, remarks, sections, tables
from feebcore.scaling.checks import counts_differ
from feebcore.scaling.rollouts import error_per_reach, stated, widening

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from made_sweep import ADAPTIVE, made
from test_vocabulary import retired_words
from worlds import grid

ISOFLOP: dict[str, Any] = {"name": "isoflop", "sizes": [{"d_model": w} for w in (4, 8, 16)], "budgets": [1.5e7, 3e7], "min_steps": 10, "tolerance": 0.05}
CASES: dict[str, dict[str, Any]] = {
    "adaptive": ADAPTIVE,
    "diverged": ADAPTIVE | {"diverges": ("probe1", "heldout"), "off": {"rung4": 1.08}},
    "isoflop, held out": {},
    "isoflop, nothing held out": {"planner": ISOFLOP},
    "law frontier": {"law": "frontier", "planner": ISOFLOP | {"sizes": [{"d_model": w} for w in (8, 16, 24, 32, 48)], "budgets": [1e9, 3e9, 1e10, 3e10]}},
    "refused": {"planner": ISOFLOP | {"sizes": [{"d_model": 4}, {"d_model": 8}], "budgets": [1.5e7]}},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: made(tmp_path_factory.mktemp("made"), **case) for name, case in CASES.items()}


@pytest.fixture
def adaptive(folders: dict[str, Path]) -> tuple[Path, dict[str, Any]]:
    return folders["adaptive"], sections(folders["adaptive"])


def test_predictions_are_the_registered_ones_and_outcomes_the_measured_ones(adaptive: tuple[Path, dict[str, Any]]) -> None:
    folder, found = adaptive
    registered = {entry["name"]: entry for entry in read_json(folder / "predictions.json")}
    losses = {run["name"]: run["loss"] for run in read_jsonl(folder / "runs.jsonl")}
    rows = {row["name"]: row for row in found["predictions"]["runs"]}
    assert rows.keys() == registered.keys()
    assert len(rows) > 8
    for name, row in rows.items():
        assert row["error"] == pytest.approx(registered[name]["loss"] / losses[name] - 1)
        assert row["inside"] == (registered[name]["low"] <= losses[name] <= registered[name]["high"])
    assert [name for name, row in rows.items() if row["heldout"]] == [name for name in rows if name.startswith("heldout")]
    assert found["predictions"]["inside"] == sum(row["inside"] for row in rows.values())


def test_residuals_are_of_the_fitted_runs_at_their_distance_from_the_best_size(adaptive: tuple[Path, dict[str, Any]]) -> None:
    _, found = adaptive
    law = {p["name"]: p["value"] for p in found["law"]["parameters"]}
    assert len(found["residuals"]) == found["law"]["num_points"]
    assert not any(row["name"].startswith("heldout") for row in found["residuals"])
    for row in found["residuals"]:
        predicted = law["E"] + law["A"] / row["N"] ** law["alpha"] + law["B"] / row["D"] ** law["beta"]
        assert row["residual"] == pytest.approx(math.log(predicted / row["loss"]), abs=1e-9)
        scale = (law["alpha"] * law["A"] / law["beta"] / law["B"]) ** (1 / (law["alpha"] + law["beta"]))
        assert row["off_ridge"] == pytest.approx(math.log(row["N"] / (scale * (row["N"] * row["D"]) ** law["a"])), abs=1e-6)


def test_outliers_are_named(folders: dict[str, Path]) -> None:
    """The first run of the fourth rung, whose loss is 8% too high."""
    name = next(run["name"] for run in read_jsonl(folders["diverged"] / "runs.jsonl") if run["name"].startswith("rung4"))
    found = sections(folders["diverged"])
    assert [row["name"] for row in found["residuals"] if row["outlier"]] == [name]
    (drawn,) = (p for p in pictures(found) if p.name == "sweep_residuals")
    assert [text["text"] for text in drawn.panels[0]["texts"]] == [name]


def test_the_probe_finds_the_factor_of_this_world_and_gives_the_forecasts_rates(adaptive: tuple[Path, dict[str, Any]]) -> None:
    _, found = adaptive
    assert len(found["lr_probe"]["places"]) == 4
    for place in found["lr_probe"]["places"]:
        assert place["best"] == pytest.approx(1.6, rel=0.3)
        _, slope, curvature = place["curve"]
        assert math.exp(-slope / (2 * curvature)) == pytest.approx(place["best"])
    ridge, forecast, rates = found["lr_probe"]["ridge"], found["forecast"], found["learning_rates"]
    by_hand = ridge["c0"] + ridge["c1"] * math.log(forecast["N"] / ridge["N"]) + ridge["c2"] * math.log(forecast["D"] / ridge["D"])
    assert rates["factor"] == pytest.approx(math.exp(by_hand))
    assert rates["options"] == {"optimizer.lr": pytest.approx(0.01 * rates["factor"], rel=1e-5)}


def test_a_parabola_that_misses_its_runs_is_noted(folders: dict[str, Path], tmp_path: Path) -> None:
    document = read_json(folders["adaptive"] / "law.json")
    document["lr_probe"]["places"][1]["best"] = 0.7  # the lowest loss there was at 2
    write_json(tmp_path / "law.json", document)
    found = sections(tmp_path)
    assert [bool(row[-1]) for row in tables(found)["lr_probe"].rows] == [False, True, False, False]
    assert "lowest loss had 2" in tables(found)["lr_probe"].rows[1][-1]
    assert any(row["code"] == "probe_misfit" for row in found["unknown"])
    assert not any(row["code"] == "probe_misfit" for row in sections(folders["adaptive"])["unknown"])


def test_what_rollouts_add_to_an_interval() -> None:
    law = resolve_part("laws", "posterior").build()
    fit = law.fit(grid(noise=0.01), "non_embedding", 200, 0)
    size, tokens = 3e9, 6e10
    flops = 6 * size * tokens
    prediction = law.predict(fit, size, tokens)
    told = widening(fit, prediction, flops)
    assert told["error_per_reach"] == error_per_reach(fit) > 0.001
    without = law.predict(dataclasses.replace(fit, rollouts=()), size, tokens)
    assert told["without_rollouts"] == pytest.approx(math.log(without.high / without.low) / 2)
    assert told["half_width"] == pytest.approx(math.log(prediction.high / prediction.low) / 2)
    assert told["half_width"] > told["without_rollouts"]
    no_interval = widening(fit, stated(fit, 1.0, math.nan, flops), flops)
    assert math.isnan(no_interval["half_width"])
    assert {rollout.cut for rollout in fit.rollouts} == {10**0.5, 10.0}


def test_parameter_counts_that_disagree_are_flagged(adaptive: tuple[Path, dict[str, Any]]) -> None:
    assert counts_differ({"total": 0.5, "matmul": 0.46}) == []
    assert counts_differ({}) == []
    (flag,) = counts_differ({"total": 0.5, "non_embedding": 0.42})
    assert "0.42 with non-embedding parameters" in flag
    _, found = adaptive
    rows = {row["parameter_count"]: row for row in found["parameter_counts"]}
    assert rows["total"]["N"][0] > rows["non_embedding"]["N"][0]
    assert rows["non_embedding"]["parameters"] == {p["name"]: p["value"] for p in found["law"]["parameters"]}
    exponents = [row["parameters"]["a"] for row in rows.values()]
    assert any(row["code"] == "counts_differ" for row in found["unknown"]) == (max(exponents) - min(exponents) > 0.05)


@pytest.mark.parametrize("name", CASES)
def test_every_page_is_whole_and_has_no_empty_figure(folders: dict[str, Path], name: str) -> None:
    found = sections(folders[name])
    assert found == json.loads(json.dumps(found))
    drawn = {p.name.removeprefix("sweep_"): p for p in pictures(found)}
    for made_picture in drawn.values():
        for panel in made_picture.panels:
            assert any(series.get("marker") and series["x"] for series in panel["series"]), made_picture.name
    text = (folders[name] / "page.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert found["headline"]["sentence"] in text.replace("&#39;", "'")
    said = remarks(found)
    for section in ("isoflop", "predictions", "residuals", "rollouts", "lr_probe"):  # a figure, or why there is none
        assert section in drawn or said[section]
    assert tables(found)["checklist"].rows
    words = " ".join([*(s for sentences in said.values() for s in sentences), *(row["text"] for row in found["unknown"]), found["headline"]["sentence"]])
    assert not retired_words(words + " ".join(cell for table in tables(found).values() for row in table.rows for cell in row))
    assert not [row for row in found["checklist"] if NOT_RECORDED in row["answer"]]


@pytest.mark.parametrize(
    ("name", "figures", "tone", "words"),
    [
        ("adaptive", {"isoflop", "predictions", "residuals", "rollouts", "lr_probe"}, ("good", "doubt"), "inside the interval; larger runs were not checked"),
        ("diverged", {"isoflop", "predictions", "residuals", "rollouts", "lr_probe"}, ("doubt",), "nothing has tested this"),
        ("isoflop, held out", {"isoflop", "predictions", "residuals"}, ("doubt", "bad"), "no target is set, so nothing is forecast"),
        ("isoflop, nothing held out", {"isoflop", "residuals"}, ("doubt",), "no target is set"),
        ("law frontier", {"isoflop"}, ("doubt",), "Law frontier describes 20 runs"),
        ("refused", {"isoflop"}, ("bad",), "There is no law: 2 distinct runs cannot determine 5 parameters"),
    ],
)
def test_a_page_shows_what_there_is(folders: dict[str, Path], name: str, figures: set[str], tone: tuple[str, ...], words: str) -> None:
    found = sections(folders[name])
    assert {p.name.removeprefix("sweep_") for p in pictures(found)} == figures
    assert found["headline"]["tone"] in tone
    assert words in found["headline"]["sentence"]


def test_diverged_and_missing_runs_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    found = sections(folders["diverged"])
    codes = {row["code"] for row in found["unknown"]}
    assert "diverged_runs" in codes
    assert "diverged" in next(row["answer"] for row in found["checklist"] if row["item"] == "Runs in the fit")
    document = read_json(folders["adaptive"] / "law.json") | {"missing": ["run rung1-d16 failed: out of memory"]}
    write_json(tmp_path / "law.json", document)
    assert {"code": "missing", "text": "Run rung1-d16 failed: out of memory."} in sections(tmp_path)["unknown"]


def test_batch_sizes_that_differ_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("recipe.json", "law.json"):
        (tmp_path / name).write_bytes((folders["isoflop, held out"] / name).read_bytes())
    runs = read_jsonl(folders["isoflop, held out"] / "runs.jsonl")
    for run in runs:
        run["overrides"].pop("batch_size", None)
    told = []
    for batch in (4, 2):  # the recipe's is 4
        runs[0]["overrides"]["batch_size"] = batch
        (tmp_path / "runs.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
        told.append([row["text"] for row in sections(tmp_path)["unknown"] if row["code"] == "batch_differs"])
    assert told[0] == []
    assert "2 to 4 sequences" in told[1][0]


def test_a_prediction_that_came_too_late_counts_for_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """As when a sweep is run again over runs that are in the workspace."""
    write_json(tmp_path / "law.json", read_json(folders["adaptive"] / "law.json"))
    write_json(tmp_path / "predictions.json", [entry | {"begun": True} for entry in read_json(folders["adaptive"] / "predictions.json")])
    found = sections(tmp_path)
    assert found["predictions"]["number"] == 0
    assert found["predictions"]["mean_error"] is None
    assert "nothing has tested this" in found["headline"]["sentence"]
    assert "sweep_predictions" not in {p.name for p in pictures(found)}
    assert any(row["code"] == "begun" for row in found["unknown"])
    assert write_page(tmp_path).is_file()


@pytest.mark.parametrize(
    ("change", "tone", "words"),
    [
        ({"high": 2.01, "measured": 2.1}, "bad", "outside the interval, so the intervals cannot be relied on"),
        ({"low": None, "high": None}, "doubt", "without an interval; larger runs were not checked"),
        ({"measured": None}, "doubt", "nothing has tested this"),
    ],
)
def test_the_headline_follows_the_held_out_run(folders: dict[str, Path], tmp_path: Path, change: Mapping[str, Any], tone: str, words: str) -> None:
    document = read_json(folders["adaptive"] / "law.json")
    document["heldout"] = [document["heldout"][0] | {"predicted": 2.0, "low": 1.9, "high": 2.2, "measured": 2.1} | change]
    write_json(tmp_path / "law.json", document)
    headline = sections(tmp_path)["headline"]
    assert headline["tone"] == tone
    assert words in headline["sentence"]


def test_only_what_cannot_be_known_is_not_recorded(folders: dict[str, Path], tmp_path: Path) -> None:
    """A law that does not say how it is fitted."""
    for name in ("recipe.json", "runs.jsonl", "environment.json"):
        (tmp_path / name).write_bytes((folders["adaptive"] / name).read_bytes())
    document = read_json(folders["adaptive"] / "law.json")
    document["method"]["estimator"] = {}
    write_json(tmp_path / "law.json", document)
    missing = [row["item"] for row in sections(tmp_path)["checklist"] if NOT_RECORDED in row["answer"]]
    assert missing == ["Objective of the fit", "Initializations of the fit", "Intervals"]


@pytest.mark.parametrize("name", ["chinchilla", "posterior", "tied", "kaplan", "frontier", "data_constrained", "mixture"])
def test_every_law_of_feeb_says_how_it_is_fitted(name: str) -> None:
    told = resolve_part("laws", name).build().estimator()
    assert list(told) == ["form", "objective", "starts", "intervals"]
    assert all(told.values())


def test_the_command_prints_the_page_the_ridge_the_rollouts_and_the_checklist(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folders["adaptive"]
    assert run_command(["sweep", "report", str(folder)]) == 0
    out = capsys.readouterr().out
    for words in (f"page: {folder / 'page.html'}", "Ridge: ln(best factor) = ", "top 3.16x", "What was fitted", "N = ", "optimizer.lr"):
        assert words in out
    assert run_command(["sweep", "report", str(folder), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"page": str(folder / "page.html"), **sections(folder)}
    with pytest.raises(DataError, match="has no law"):
        sections(tmp_path)
