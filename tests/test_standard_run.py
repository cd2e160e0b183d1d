"""The standard run behind docs/parts.md: one part exchanged at a time, resumable, and reported without claiming too much."""

import importlib.util
from pathlib import Path

import pytest

from feebcore.registry import Registry

ROOT = Path(__file__).resolve().parents[1]


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


standard, page = module_at(ROOT / "benchmarks" / "standard_run.py"), module_at(ROOT / "docs" / "parts_page.py")


def runs(*scores, kind="norms", name="layernorm", options=None):
    rates = {"tokens_per_second": 1000, "relative_speed": 0.5}
    return [{"kind": kind, "name": name, "options": options or {}, "seed": i, "bits_per_byte": score, **rates} for i, score in enumerate(scores)]


def test_a_part_is_exchanged_alone_unless_it_needs_another():
    base = standard.chosen("baseline", "baseline")
    for kind, name in standard.labels()[1:]:
        parts = standard.chosen(kind, name)
        changed = {s for s in standard.KINDS if parts[s] != base[s]}
        assert changed == {kind, *standard.WITH.get(f"{kind}/{name}", {})}
        assert parts[kind]["name"] == name


def test_options_and_needs_are_of_parts_that_exist():
    known = {f"{kind}/{name}" for kind, name in standard.labels()}
    assert known >= standard.OPTIONS.keys() | standard.WITH.keys() | standard.NOTES.keys()


def test_data_is_the_same_for_every_part_and_the_held_out_files_are_not_trained_on(monkeypatch):
    train, held_out, _ = standard.texts()
    first, second = standard.batch_of(train, 7), standard.batch_of(train, 7, "completion_only")
    assert (first.tokens == second.tokens).all()
    assert first.mask is None
    assert second.mask.float().mean() == 0.5
    assert bytes(held_out[:4096]) not in bytes(train)


def test_a_run_of_a_few_steps_learns_and_says_what_it_cost(monkeypatch):
    monkeypatch.setattr(standard, "SCORED", 2)
    row = standard.run("norms", "layernorm", seed=0, steps=6)
    assert 0 < row["bits_per_byte"] < 8  # a uniform guess costs 8
    assert row["parameters"] == page.cost(standard, "norms", "layernorm").total
    assert row["relative_speed"] > 0


def test_a_part_beyond_a_limit_is_refused(monkeypatch):
    monkeypatch.setattr(standard, "MOST_PARAMETERS", 1000)
    with pytest.raises(RuntimeError, match="parameters are more than 1,000"):
        standard.run("norms", "layernorm", seed=0, steps=1)
    monkeypatch.setattr(standard, "MOST_PARAMETERS", 10**6)
    monkeypatch.setattr(standard, "MOST_SECONDS", 0.0)
    with pytest.raises(RuntimeError, match="after 1 of 2 steps"):
        standard.run("norms", "layernorm", seed=0, steps=2)


def test_what_was_written_is_read_again_and_other_settings_are_refused(tmp_path):
    head = {"settings": {"steps": 3}, "text": {"digest": "a"}, "versions": {"torch": "2"}, "date": "then"}
    results = {**head, "runs": runs(1.0, 2.0)}
    standard.save(tmp_path / "r.json", results)
    assert standard.load(tmp_path / "r.json", {**head, "date": "now"}) == results
    with pytest.raises(SystemExit, match="other settings"):
        standard.load(tmp_path / "r.json", {**head, "settings": {"steps": 4}})


def test_a_worker_that_dies_costs_one_row(monkeypatch, tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, sys\nfor line in sys.stdin:\n    job = json.loads(line)\n    sys.exit(3) if job['die'] else print(json.dumps({'fine': 1}), flush=True)\n"
    )
    monkeypatch.setattr(standard, "__file__", str(script))
    worker = standard.Worker()
    assert worker.do({"die": True}) == {"failed": "its process ended with status 3"}
    assert worker.do({"die": False}) == {"fine": 1}
    worker.close()


def test_the_interval_is_students_and_a_verdict_needs_it_to_leave_out_zero():
    baseline = dict(enumerate(runs(1.0, 1.0, 1.0)))
    # t of 2 degrees of freedom at 97.5 % is 4.3027; the deviation of 1, 2, 3 is 1
    assert page.difference(dict(enumerate(runs(2.0, 3.0, 4.0))), baseline) == ("+2.000 [-0.484, +4.484]", "")
    assert page.difference(dict(enumerate(runs(2.0, 2.1, 2.2))), baseline)[1] == "worse"
    assert page.difference(dict(enumerate(runs(0.5, 0.6, 0.7))), baseline)[1] == "better"
    assert page.difference({0: runs(2.0)[0]}, baseline) == ("1 of 3 seeds", "")


def test_rows_say_what_was_not_run_what_failed_and_nothing_of_other_options():
    (spec,) = [s for s in page.built_in(Registry(), "norms") if s.name == "layernorm"]
    row = lambda found: page.result_row(standard, {"runs": found}, "norms", spec)  # noqa: E731
    assert "| not run |" in row([])
    assert "| not run |" in row(runs(1.0, 1.0, 1.0, options={"bias": False}))
    failed = runs(1.0, 1.0)
    assert "| failed: it diverged |" in row([*failed, {**failed[0], "seed": 2, "failed": "it diverged"}])
    assert "| 1,000 | 0.50 | +1.000 [+1.000, +1.000] | worse |" in row([*runs(2.0, 2.0, 2.0), *runs(1.0, 1.0, 1.0, kind="baseline", name="baseline")])
