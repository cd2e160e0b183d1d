"""`feeb runs`, `show`, `diff`, `plot`, `parts`, `generate` on a real (tiny) chain."""

from __future__ import annotations

import inspect
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from feeb_pipelines.cli.tables import table_lines
from feebcore import diff, open_run

from .conftest import RECIPE, Inside


@pytest.fixture
def chain(tiny_chain):
    workspace, artifacts = tiny_chain
    return Inside(workspace.root), artifacts


def test_runs_are_listed_newest_first_with_what_their_recipe_changes(inside: Inside) -> None:
    inside("run", RECIPE, "--in-process")
    inside("run", RECIPE, "sum_numbers", "--in-process", "--name", "more", "--set", "make_numbers.count=4")
    rows = inside.json("runs")
    assert [r["created"] for r in rows] == sorted((r["created"] for r in rows), reverse=True)
    more = next(r for r in rows if r["name"] == "more")
    assert more["changes"] == {"make_numbers.count": 4}
    assert Path(more["path"]) == inside.workspace / more["run"]
    assert inside.json("runs", "--last", 1) == rows[:1]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_table_never_breaks_what_one_copies(width: int) -> None:
    reference = "pretrain/a-name-that-is-rather-long-for-a-run-0123456789ab"
    rows = [("3 min", reference, "running, 130/400 steps (32%)", "lr=0.1, " * 8, "loss 1.2"), ("9 d", "sft/x-0123456789ab", "finished", "", "accuracy 0.5")]
    lines = table_lines(("age", "run", "status", "changes", "metrics"), rows, width, prose=("changes", "metrics"), drop=("age",))
    assert sum(reference in line for line in lines) == 1
    assert "accuracy 0.5" in " ".join(" ".join(lines).split())
    assert all(len(line) <= max(width, len(reference) + 32) for line in lines)
    assert len(table_lines(("age", "run"), [(row[0], row[1]) for row in rows], None)) == 4


def test_show_tells_what_a_run_is(chain) -> None:
    feeb, artifacts = chain
    pretrain = artifacts["pretrain"]
    for reference in ("pretrain/tiny", pretrain.fingerprint[:6], pretrain.path):
        text = feeb("show", reference).stdout
        assert text.startswith(f"pretrain/{pretrain.path.name}\n")
    for words in ("finished in", str(pretrain.path), "tiny.yaml", f"shard/{artifacts['shard'].path.name}", "val_bits_per_byte", "parameters.total"):
        assert words in text
    assert re.search(r"python_parses\.pretrain\S*\s+[\d.]+ \([\d.]+–[\d.]+", feeb("show", "evaluate/tiny").stdout)
    shown = feeb.json("show", "pretrain/tiny")
    assert shown["section"]["max_steps"] == 6
    assert shown["metrics"] == pretrain.metrics


def test_show_and_diff_keep_the_stage_in_what_they_suggest(chain) -> None:
    feeb, _ = chain
    for command in (("show", "pretrain/tinny"), ("diff", "pretrain/tinny", "pretrain/tiny"), ("generate", "pretrain/tinny", "x"), ("plot", "pretrain/tinny")):
        done = feeb(*command)
        assert done.returncode == 1
        assert "did you mean 'pretrain/tiny'" in done.stderr


def test_an_unfinished_run_shows_how_far_it_is(tiny_chain, tmp_path: Path) -> None:
    _, artifacts = tiny_chain
    folder = tmp_path / "data" / "pretrain" / "half-0123456789ab"
    folder.mkdir(parents=True)
    for name in ("recipe.json", "request.json", "metrics.jsonl"):
        shutil.copy(artifacts["pretrain"].path / name, folder)
    event = {"time": 0.0, "kind": "progress", "done": 3, "total": 6, "unit": "steps", "name": "training"}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")
    feeb = Inside(tmp_path / "data")
    row = feeb.json("runs")[0]
    assert (row["status"], row["progress"]["done"], row["progress"]["total"]) == ("unfinished", 3, 6)
    assert "unfinished, 3/6 steps (50%)" in feeb("runs").stdout
    assert "3/6 steps (50%)" in feeb("show", "half").stdout
    assert feeb("diff", "half", "half").returncode == 0


def test_diff_shows_settings_parts_and_metrics(inside: Inside) -> None:
    inside("run", RECIPE, "sum_numbers", "--in-process")
    inside("run", RECIPE, "sum_numbers", "--in-process", "--name", "four", "--set", "make_numbers.count=4")
    result = inside.json("diff", "sum_numbers/tiny", "sum_numbers/four")
    assert result["settings"] == [{"key": "make_numbers.count", "a": 10, "b": 4}]
    assert [row for row in result["metrics"] if row["key"] == "total"] == [{"key": "total", "a": 45, "b": 6, "difference": -39}]
    assert "make_numbers.count" in inside("diff", "sum_numbers/tiny", "sum_numbers/four").stdout
    assert diff("sum_numbers/tiny", open_run("sum_numbers/four", inside.workspace), inside.workspace) == result


def test_diff_of_recipes(inside: Inside, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {RECIPE}\nname: mine\nmake_numbers: {{count: 4}}\n")
    assert inside.json("diff", RECIPE, mine)["settings"] == [{"key": "make_numbers.count", "a": 10, "b": 4}]
    assert "name two of a kind" in inside("diff", RECIPE, "sum_numbers/tiny").stderr


@pytest.mark.parametrize("axis", ["step", "tokens", "flops", "time"])
def test_plot_draws_runs_over_each_other(chain, tmp_path: Path, axis: str) -> None:
    feeb, artifacts = chain
    result = feeb.json("plot", "pretrain/tiny", artifacts["pretrain"].path, "--x", axis, "--out", tmp_path / "both")
    assert Path(result["png"]).read_bytes().startswith(b"\x89PNG")
    data = json.loads(re.search(r'class="chart-data">(.*?)</script>', Path(result["html"]).read_text(), re.DOTALL)[1])
    lines = [s for s in data[0]["series"] if s["name"] and "validation" not in s["name"]]
    assert len(lines) == 2
    last = {"step": 6, "tokens": 6 * 4 * 64, "flops": artifacts["pretrain"].metrics["flops"]}.get(axis)
    assert last is None or lines[0]["x"][-1] == pytest.approx(last, rel=1e-3)


def test_plot_names_what_a_log_has(chain) -> None:
    feeb, _ = chain
    assert "did you mean 'loss'" in feeb("plot", "pretrain/tiny", "--metric", "los").stderr
    assert "has no log" in feeb("plot", "shard/tiny").stderr


def test_parts_of_a_part_are_its_options(inside: Inside) -> None:
    text = inside("parts", "lion").stdout
    for words in ("optimizers/lion", "arXiv:2302.06675", "lion/lion.py", "pretrain.optimizer", "weight_decay", "float ≥ 0", "0.0005", "decoupled"):
        assert words in text
    text = inside("parts", "attentions/mqa").stdout
    assert re.search(r"parameters \(-[\d,]+ vs\. mha\)", text)
    assert inside("parts", "files").stdout.startswith("sources/files")
    assert "did you mean 'files'" in inside("parts", "filez").stderr


def test_a_stage_and_a_recipe_come_in_either_order(inside: Inside) -> None:
    for words in ((RECIPE, "make_numbers"), ("make_numbers", RECIPE)):
        assert [r["stage"] for r in inside.json("plan", *words)] == ["make_numbers"]
        assert list(inside.json("run", *words, "--in-process")["runs"]["tiny"]) == ["make_numbers"]


def test_a_stage_that_a_recipe_does_not_list_is_run_after_its_stages(inside: Inside) -> None:
    result = inside.json("run", RECIPE, "report", "--in-process")
    assert Path(result["report"]).name == "report.html"
    assert "make_numbers" in result["runs"]["tiny"]


@pytest.fixture
def named_quickstart(tiny_chain, tmp_path: Path) -> Inside:
    """A workspace with models of the names that the help speaks of."""
    _, artifacts = tiny_chain
    for stage in ("pretrain", "rl"):
        folder = tmp_path / "data" / stage / "quickstart-0123456789ab"
        shutil.copytree(artifacts["pretrain"].path, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest |= {"stage": stage, "name": "quickstart", "finished": manifest["finished"] + (stage == "rl")}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return Inside(tmp_path / "data")


def test_the_examples_of_generate_work_and_name_their_model(named_quickstart: Inside) -> None:
    from feeb_pipelines.cli.generate import generate

    examples = [line.strip() for line in inspect.getdoc(generate).partition("Examples:")[2].splitlines() if line.strip()]
    assert len(examples) >= 2
    for example in examples:
        words = shlex.split(example)[1:]
        done = named_quickstart(*words, "--max-new-tokens", 4)
        assert done.returncode == 0, done.stderr
        assert words[2] in done.stdout
        assert f"model {words[1]}-0123456789ab" in done.stderr
    assert "could also be pretrain/quickstart" in named_quickstart("generate", "quickstart", "x", "--max-new-tokens", 2).stderr


def test_generate_gives_samples_from_a_file_and_beyond_the_context(chain, tmp_path: Path) -> None:
    feeb, _ = chain
    (tmp_path / "prompt.txt").write_text("def f")
    result = feeb.json("generate", "pretrain/tiny", "--prompt-file", tmp_path / "prompt.txt", "--samples", 3, "--max-new-tokens", 200)
    assert result["prompt"] == "def f"
    assert len(set(result["completions"])) == 3
    from feebcore.api import generate, open_run

    opened = open_run("pretrain/tiny", feeb.workspace).opened()
    long, short = (generate(opened, ["def f", "x"], n, temperature=0.0) for n in (200, 40))
    assert opened.model.seq_len == 64
    assert all(a.startswith(b) for a, b in zip(long, short, strict=True))
    assert len(opened.tokenizer.encode(long[0])) > 64 or len(long[0]) < 200
    assert "context is 64 tokens" in feeb("generate", "pretrain/tiny", "x", "--max-new-tokens", 100).stderr
    assert "--prompt-file" in feeb("generate", "pretrain/tiny", "x", "--prompt-file", tmp_path / "none").stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_to_do_next_is_said_on_a_terminal_only(inside: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    assert inside("run", RECIPE, "--in-process").stderr == ""
    monkeypatch.setattr(io, "StringIO", Terminal)
    for command in (
        ("run", RECIPE),
        ("runs",),
        ("show", "tiny"),
        ("plan", RECIPE, "--set", "slow.steps=7"),
        ("parts", "lion"),
        ("diff", "slow/tiny", "slow/tiny"),
    ):
        assert "next: " in inside(*command, COLUMNS="100").stderr, command
