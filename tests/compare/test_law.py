"""Two laws compared through whole trainings of a few thousand parameters, and the sentences that are said of known laws."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feeb_pipelines.cli import run_command
from feebcore import api
from feebcore.artifacts import Workspace
from feebcore.compare import law as law_module
from feebcore.compare import law_report
from feebcore.compare.law import LawSettings, cell_for, compare_laws, compare_sweeps, planned_pairs, sides_of
from feebcore.compare.law_page import pictures
from feebcore.errors import FeebError, RecipeError
from feebcore.files import read_json
from feebcore.protocols import Cell
from feebcore.recipe import load
from feebcore.run.build import run_all
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.paired import Pair
from feebcore.study.ledger import read_records
from feebcore.train.scaled import lr_overrides

sys.path.insert(0, str(Path(__file__).parent))
from small_law import IDEA, recipes, run
from test_adaptive_sweep import ADAPTIVE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from law_compare_calibration import EFFICIENT, Design, world_of


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, artifact) of a comparison of nine pairs."""
    root = tmp_path_factory.mktemp("law")
    return root, run(root)


@pytest.fixture(scope="module")
def result(done):
    return read_json(done[1].file("result.json"))


def lasting(result):
    """Without what is of the machine."""
    return result | {"runs": [{k: v for k, v in row.items() if k not in ("seconds", "path")} for row in result["runs"]]}


def test_both_sides_train_the_same_slots(done, result):
    by_name = {row["name"]: api.open_run(row["path"], done[0] / "data").section for row in result["runs"]}
    assert len(by_name) == 18
    for pair in result["pairs"]:
        first, second = by_name[f"tiny/{pair['name']}"], by_name[f"idea/{pair['name']}"]
        different = {key for key in first.keys() | second.keys() if first.get(key) != second.get(key)}
        assert different == {"architecture", "optimizer"}
        assert (first["optimizer"]["lr"], second["optimizer"]["lr"]) == (0.01, 0.02)
        assert pair["tokens"][0] == pair["tokens"][1]


def test_ratios_are_those_of_the_runs(done, result):
    losses = {row["name"]: api.open_run(row["path"], done[0] / "data").metrics["val_loss"] for row in result["runs"]}
    for pair in result["pairs"]:
        assert pair["loss"] == [losses[f"{side}/{pair['name']}"] for side in ("tiny", "idea")]


def test_the_page_says_what_the_result_says(done, result):
    folder = done[1].path
    (sentence,) = result["verdict"]
    assert sentence in (folder / "page.md").read_text()
    assert (folder / "verdict.txt").read_text().startswith(sentence)
    assert sentence in (folder / "page.html").read_text()
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert done[1].metrics["verdict"] == sentence
    assert any(note.startswith("law of tiny: few_points") for note in result["notes"])
    assert result["target"] == max(pair["flops"][0] for pair in result["pairs"])


def test_the_manifest_holds_every_run_so_that_none_is_cleaned_up(done, result):
    inputs = {entry["path"] for entry in done[1].manifest["inputs"].values()}
    assert {str(Path(row["path"]).relative_to(done[0] / "data")) for row in result["runs"]} <= inputs


def test_a_second_call_does_nothing(done, monkeypatch):
    monkeypatch.setattr(law_module, "run_study", None)
    assert run(done[0]).fingerprint == done[1].fingerprint


def test_another_target_trains_nothing_again(done, result):
    events: list[dict] = []
    artifact = run(done[0], events.append, target=2e8)
    assert artifact.fingerprint != done[1].fingerprint
    assert not [event for event in events if event["kind"] == "progress"]
    again = read_json(artifact.file("result.json"))
    assert again["target"] == 2e8
    assert again["comparison"]["measured"] == result["comparison"]["measured"]


def test_finished_sweeps_are_compared_as_they_are(done, result, capsys):
    """The sweeps find their runs in the workspace, and their comparison says what that of the recipes says."""
    space = Workspace(done[0] / "data")
    folders = []
    for recipe in recipes(done[0]):
        events: list[dict] = []
        folders.append(run_all(recipe, space, ["sweep"], events.append)["sweep"].path)
        assert not [e for e in events if e.get("unit") == "steps"]
    again = read_json(compare_sweeps(folders, LawSettings(), space).file("result.json"))
    assert again["pairs"] == result["pairs"]
    assert again["comparison"] == result["comparison"]
    assert again["verdict"] == result["verdict"]
    assert run_command(["compare", "--law", "tiny", "idea", "--workspace", str(space.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == result["verdict"]
    with pytest.raises(RecipeError, match="very same runs"):
        compare_sweeps([folders[0], folders[0]], LawSettings(), space)


def test_the_command_prints_a_table_the_sentence_and_json(done, result, capsys):
    command = ["compare", "--law", str(done[0] / "r.yaml"), str(done[0] / "idea.yaml"), "--workspace", str(done[0] / "data")]
    assert run_command(command) == 0
    text = capsys.readouterr().out
    assert result["verdict"][0] in " ".join(text.split())
    assert "(middle of the runs)" in text
    assert run_command([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(done[1].path)
    assert printed.items() >= result.items()
    assert run_command([*command, "--plan"]) == 0
    assert capsys.readouterr().out.endswith("9 pairs; to train: 0 runs, 0 FLOPs\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["r.yaml", "idea.yaml", "--seeds", "3", "--keep-lr"], "--seeds, --keep-lr: not with --law"),
        (["r.yaml", "idea.yaml", "--target", "0"], "--target 0: a number of training FLOPs, above 0"),
        (["r.yaml", "idea.yaml", "--name", "a/b"], "--name: name 'a/b'"),
        (["r.yaml", "tiny"], "give two recipes (YAML files), or the names of two finished sweeps"),
        (["tiny", "idea", "--plan"], "--plan: two finished sweeps train nothing"),
        (["nowhere", "idea"], "no run 'sweep/nowhere'"),
    ],
)
def test_what_the_command_refuses_is_one_sentence(done, capsys, monkeypatch, words, said):
    monkeypatch.chdir(done[0])
    assert run_command(["compare", "--law", *words, "--workspace", str(done[0] / "data")]) == 1
    message = capsys.readouterr().err.strip()
    assert said in message
    assert "\n" not in message


def test_a_target_is_for_laws(done, capsys):
    assert run_command(["compare", str(done[0] / "r.yaml"), str(done[0] / "idea.yaml"), "--target", "1e9"]) == 1
    assert "--target is for --law" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_comparison_continues_to_the_same_result(done, result, tmp_path):
    script = str(Path(__file__).parent / "small_law.py")
    assert subprocess.run([sys.executable, script, str(tmp_path), "5"], capture_output=True, check=False).returncode == -9
    (folder,) = (path for path in (tmp_path / "data" / "compare").iterdir() if path.is_dir())
    assert not (folder / "manifest.json").exists()
    events: list[dict] = []
    artifact = run(tmp_path, events.append)
    ended = [event["text"] for event in events if event["kind"] == "log" and "runs so far" in event["text"]]
    assert len(ended) < 18
    assert lasting(read_json(artifact.file("result.json"))) == lasting(result)


@pytest.mark.slow
def test_an_adaptive_planner_is_asked_for_the_first_side_alone(tmp_path):
    """The slots are the runs of the first recipe's own sweep, whatever the second measures in them."""
    pair = recipes(tmp_path, IDEA, **ADAPTIVE)
    space = Workspace(tmp_path / "data")
    result = read_json(compare_laws(pair, LawSettings(), space).file("result.json"))
    events: list[dict] = []
    sweep = run_all(pair[0], space, ["sweep"], events.append)["sweep"]
    assert not [event for event in events if event.get("unit") == "steps"]
    slots = {record.name: record for record in read_records(sweep.path / "ledger.sqlite")}
    runs = {row["name"]: row for row in result["runs"]}
    assert runs.keys() == {f"{side}/{slot}" for side in ("tiny", "idea") for slot in slots}
    probed = [slot for slot in slots if slot.startswith("probe")]
    assert len(result["pairs"]) == len(slots) - len(probed)
    for slot, record in slots.items():
        assert runs[f"tiny/{slot}"]["overrides"] == record.overrides
        other = runs[f"idea/{slot}"]["overrides"]
        assert other.keys() == record.overrides.keys()
        assert all(other[key] == value for key, value in record.overrides.items() if key != "optimizer.lr")
        if "optimizer.lr" in other:
            assert other["optimizer.lr"] == pytest.approx(0.2 * record.overrides["optimizer.lr"], rel=1e-4)


def test_the_plan_tells_what_is_there_and_what_it_costs(done, tmp_path):
    rows = planned_pairs(recipes(done[0]), LawSettings(), Workspace(done[0] / "data"))
    assert [row["status"] for row in rows] == [["reuse", "reuse"]] * 9
    wider = IDEA.replace("block: parallel", "d_model: 4, feedforward: {name: swiglu, intermediate_size: 64}")
    (done[0] / "wide.yaml").write_text(wider.replace("name: idea", "name: wide"))
    rows = planned_pairs([recipes(done[0])[0], load(done[0] / "wide.yaml")], LawSettings(), Workspace(done[0] / "data"))
    assert [row["status"] for row in rows] == [["reuse", "run"]] * 9
    assert all(row["flops"][1] > 1.02 * row["flops"][0] and row["N"][1] > row["N"][0] for row in rows)
    with pytest.raises(FeebError, match=r"run `feeb run .*r\.yaml"):
        planned_pairs(recipes(tmp_path), LawSettings(), Workspace(tmp_path / "data"))


def test_a_side_that_diverges_is_told_and_nothing_is_claimed(done):
    pair = [recipes(done[0])[0], load(_written(done[0], IDEA.replace("lr: 0.02", "lr: 300.0")))]
    result = read_json(compare_laws(pair, LawSettings(name="wild"), Workspace(done[0] / "data")).file("result.json"))
    assert result["kind"] == "cannot tell"
    assert result["verdict"] == [law_report.sentence("tiny", "idea", None, float("nan"), "one side has no finished run")]
    assert sum(note.startswith("diverged: idea/") for note in result["notes"]) == 9


def _written(root: Path, text: str) -> Path:
    path = root / "other.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sweep: {eval_documents: 4}", "sweep.eval_documents: 5 in .* and 4 in"),
        ("sweep: {parameter_count: total}", "sweep.parameter_count: 'non_embedding' in"),
        ("sweep: {seed: 3}", "sweep.seed: 0 in .* and 3 in"),
        ("sweep: {train: {seed: 3}}", "sweep.train.seed"),
        ("sweep: {train: {batch_size: 8}}", "sweep.train.batch_size: 4 in .* and 8 in"),
        ("sweep: {train: {seq_len: 32}}", "sweep.train.seq_len"),
        ("sweep: {train: {packing: best_fit}}", "sweep.train.packing"),
        ("sweep: {planner: {min_steps: 20}}", "sweep.planner.min_steps: 10 in .* and 20 in"),
        ("sweep: {planner: {budgets: [1.5e7, 3e7, 7e7]}}", "sweep.planner.budgets"),
        ("tokenizer: {tokenizer: {name: bpe, vocab_size: 300}}", "tokenizer.tokenizer"),
        ("download: {split_modulus: 5}", "download.split_modulus"),
        ("description: the same", "train the very same runs"),
        ("stages: [download, tokenizer, shard]", "has no stage sweep"),
    ],
)
def test_what_cannot_be_paired_is_refused_before_anything_is_built(tmp_path, change, named):
    (base, _), other = recipes(tmp_path), _written(tmp_path, f"extends: r.yaml\nname: other\n{change}\n")
    with pytest.raises(RecipeError, match=named) as caught:
        compare_laws([base, load(other)], LawSettings(), Workspace(tmp_path / "data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_laws_are_compared_two_at_a_time(tmp_path):
    base, idea = recipes(tmp_path)
    with pytest.raises(RecipeError, match="two recipes"):
        sides_of([base, idea, idea], LawSettings())


@pytest.mark.parametrize("target", [-1.0, float("nan"), float("inf")])
def test_a_target_must_be_a_number_of_flops(target):
    with pytest.raises(ValueError, match="target"):
        LawSettings(target=target)


# --- learning rates of a slot ---------------------------------------------------------------------------------------------------


def sections(second: str) -> tuple[SweepConfig, SweepConfig]:
    planner = {"name": "isoflop", "sizes": [{"d_model": 4}], "budgets": [1e7]}
    made = [{"optimizer": {"name": "muon", "lr": 0.04, "embedding_lr": 0.12, "lm_head_lr": 0.03}}, {"optimizer": json.loads(second)}]
    first, other = (SweepConfig.model_validate({"planner": planner, "train": train}) for train in made)
    return first, other


@pytest.mark.parametrize("factor", [0.5, 1.7320508])
def test_a_slot_gives_the_second_side_the_same_multiple_of_its_own_rates(factor):
    first, second = sections('{"name": "adamw", "lr": 0.002}')
    cell = Cell("a", {"architecture.d_model": 8, "max_steps": 5} | lr_overrides(first.train.optimizer, factor), 1.0)
    overrides = cell_for(cell, first, second).overrides
    assert overrides.keys() == {"architecture.d_model", "max_steps", "optimizer.lr"}
    assert overrides["optimizer.lr"] == pytest.approx(0.002 * factor, rel=1e-5)
    assert cell_for(cell, first, first) == cell


def test_a_rate_of_one_size_goes_to_the_same_rate():
    first, second = sections('{"name": "muon", "lr": 0.01}')
    assert cell_for(Cell("a", {"optimizer.lr": 0.02}, 1.0), first, second).overrides == {"optimizer.lr": 0.005}
    with pytest.raises(RecipeError, match=r"optimizer\.embedding_lr at a"):
        cell_for(Cell("a", {"optimizer.embedding_lr": 0.02}, 1.0), *sections('{"name": "adamw", "lr": 0.002}'))


def test_trials_that_are_chosen_by_their_loss_are_no_pairs():
    planner = SweepConfig.model_validate({"planner": {"name": "adaptive", "budget": 1e12}}).planner.build()
    _, _, pairs = world_of(Design("", 3, 3), 0)
    names = ["probe1-d8-x0.5", "probe1-d8-x1", "probe1-d8-x2", *(f"rung1-{i}" for i in range(6))]
    named = [Pair(name, *(dataclasses.replace(point, name=name) for point in (p.first, p.second))) for name, p in zip(names, pairs, strict=True)]
    assert [pair.name for pair in law_module._usable(named, planner)] == names[3:]


# --- sentences ------------------------------------------------------------------------------------------------------------------


def said(pairs: list[Pair], target: float) -> dict:
    points = [{pair.name: getattr(pair, side) for pair in pairs} for side in ("first", "second")]
    return law_report.make(["base", "idea"], pairs, points, "total", target, 0, [])


@pytest.mark.parametrize(
    ("design", "take", "target", "kind", "words"),
    [
        (Design("", 4, 4, EFFICIENT, EFFICIENT), 16, 3e19, "better", r"^idea is better than base at 3e\+19 FLOPs, 11.1 times the dearest run: .* lower loss"),
        (Design("", 4, 4, -EFFICIENT, -EFFICIENT), 16, 3e19, "worse", r"^idea is worse than base .* higher loss .* worth 0\.\d+ times the compute"),
        (Design("", 5, 5, noise=3e-4), 25, 3e19, "no difference", r"^No difference larger than 0\.\d\d% of the loss between idea and base"),
        (Design("", 4, 4, noise=0.01), 16, 3e19, "cannot tell", r"^Cannot tell whether idea differs from base at 3e\+19 FLOPs: .*less than 0\.3%"),
        (Design("", 4, 4, EFFICIENT, EFFICIENT), 7, 3e19, "cannot tell", r": 7 pairs of runs give no interval\.$"),
        (Design("", 4, 4, EFFICIENT, EFFICIENT), 4, 3e19, "cannot tell", r": 4 distinct runs cannot determine 5 parameters"),
        (
            Design("", 4, 4, EFFICIENT, EFFICIENT),
            16,
            3e24,
            "cannot tell",
            r"the target is 1.11e\+06 times the dearest run.*; in the measured range it is better: 1\.\d",
        ),
    ],
)
def test_one_sentence_claims_no_more_than_it_may(design, take, target, kind, words):
    result = said(world_of(design, 0)[2][:take], target)
    assert result["kind"] == kind
    assert re.search(words, result["verdict"][0]), result["verdict"]
    assert json.dumps(result, allow_nan=False)
    assert pictures(result)


def test_laws_that_cross_are_said_with_both_places():
    _, second, pairs = world_of(Design("", 4, 4, noise=1e-4), 0)
    worse = dataclasses.replace(second, u=0.03, v=0.03, da=-0.012, db=-0.012)
    crossing = [Pair(p.name, p.first, dataclasses.replace(p.second, loss=worse.loss(p.second.total, p.second.tokens))) for p in pairs]
    (sentence,) = said(crossing, 1e20)["verdict"]
    assert sentence.startswith("idea is better than base in the measured range (1.")
    assert "and worse than base at 1e+20 FLOPs, 37 times the dearest run" in sentence
    assert "it crosses over at C = " in sentence
