"""`feeb run` through Prefect: what is recorded, what survives kills, and that no process outlives its use."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .conftest import RECIPE, Feeb, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "compare"))
from small_law import recipes as small_recipes

pytestmark = pytest.mark.e2e


def rows(feeb: Feeb, query: str) -> list[tuple[Any, ...]]:
    return feeb.rows(query)


def flow_runs(feeb: Feeb) -> list[tuple[str, str]]:
    return rows(feeb, "select name, state_name from flow_run order by created")


def task_runs(feeb: Feeb) -> list[tuple[str, str]]:
    return rows(feeb, "select name, state_name from task_run order by created")


def slow_state(feeb: Feeb) -> int:
    """The step that stage slow has saved, 0 before it began."""
    for path in feeb.workspace.glob("slow/*/state.json"):
        return int(json.loads(path.read_text()))
    return 0


@pytest.mark.slow
def test_a_recipe_is_one_flow_run_with_a_task_per_stage(served: Feeb) -> None:
    done = served("run", RECIPE)
    assert done.returncode == 0, done.stderr
    assert "4 built, 0 reused" in done.stdout
    assert "report.html" in done.stdout.splitlines()[-1]
    again = served("run", RECIPE, "--set", "slow.steps=6")  # the first two stages are reused, as tasks
    assert "2 built, 2 reused" in again.stdout, again.stdout + again.stderr
    assert flow_runs(served) == [("tiny-pipeline", "Completed")] * 2
    stages = ["make_numbers", "sum_numbers", "slow", "page"]
    assert task_runs(served) == [(f"tiny-{stage}", "Completed") for stage in stages] * 2
    assert not [name for name, tags in rows(served, "select name, tags from task_run") if json.loads(tags)], "tags make Prefect ask for limits, for seconds"
    kinds = dict(rows(served, "select key, type from artifact"))
    assert kinds["tiny-slow-summary"] == "markdown"
    assert kinds["tiny-slow-metrics"] == kinds["tiny-pipeline-stages"] == "table"
    assert "report.html" in str(rows(served, "select data from artifact where key = 'tiny-page-report'"))
    fingerprints = {r["fingerprint"] for r in served.json("runs") if r["stage"] == "slow"}
    stages_tables = [data for (data,) in rows(served, "select data from artifact where key = 'tiny-pipeline-stages'")]
    assert all(any(fingerprint in data for data in stages_tables) for fingerprint in fingerprints)
    messages = {message for (message,) in rows(served, "select message from log")}
    assert {"starts at step 0", "numbers are made"} <= messages
    assert not rows(served, "select name from flow_run where parameters not like '%tiny.yaml%'")
    results = [json.loads(p.read_text()) for p in (served.workspace / ".prefect" / "storage").iterdir()]  # JSON, not pickle
    assert len(results) >= 2


def test_nothing_to_do_needs_no_server(feeb: Feeb) -> None:
    assert feeb("run", RECIPE, "--in-process").returncode == 0
    done = feeb("run", RECIPE, PREFECT_API_URL="http://127.0.0.1:9/api")  # nobody answers there
    assert done.returncode == 0
    assert "nothing to do" in done.stdout
    assert not (feeb.workspace / ".prefect").exists()


@pytest.mark.slow
def test_one_stage_builds_its_inputs_and_no_more(served: Feeb) -> None:
    result = served.json("run", "sum_numbers", RECIPE)
    assert [*result["runs"]["tiny"]] == ["make_numbers", "sum_numbers"]
    assert flow_runs(served) == [("tiny-sum_numbers", "Completed")]


@pytest.mark.slow
def test_a_failing_stage_is_one_message_and_a_failed_run(served: Feeb) -> None:
    done = served("run", RECIPE, "--set", "sum_numbers.fail=true")
    assert done.returncode == 1
    assert "these numbers do not add up" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert flow_runs(served) == [("tiny-pipeline", "Failed")]
    assert task_runs(served) == [("tiny-make_numbers", "Completed"), ("tiny-sum_numbers", "Failed")]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_as_cancelled(served: Feeb, number: signal.Signals) -> None:
    process = served.start("run", RECIPE, "--set", "slow.steps=1000", "--set", "slow.step_seconds=0.05")
    wait_until(lambda: slow_state(served) >= 2, 90, "stage slow did not begin")
    process.send_signal(number)
    output, _ = process.communicate(timeout=12)
    assert process.returncode == 130, output
    assert "saved at step" in output
    assert "Traceback" not in output
    assert flow_runs(served) == [("tiny-pipeline", "Cancelled")]
    assert task_runs(served)[-1] == ("tiny-slow", "Cancelled")


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_is_settled_and_continues(own_server: Feeb) -> None:
    settings = ("--set", "slow.steps=40", "--set", "slow.step_seconds=0.1")
    process = own_server.start("run", RECIPE, *settings)
    wait_until(lambda: slow_state(own_server) >= 3, 90, "stage slow did not begin")
    process.kill()
    process.communicate()
    own_server.wait_for_no_process(15)  # worker, server and guard end on their own
    reached = slow_state(own_server)
    assert flow_runs(own_server) == [("tiny-pipeline", "Running")]
    done = own_server("run", RECIPE, *settings)
    assert done.returncode == 0, done.stderr
    assert own_server.artifacts()["slow"]["metrics"]["started_at"] == reached >= 3
    assert flow_runs(own_server) == [("tiny-pipeline", "Crashed"), ("tiny-pipeline", "Completed")]
    assert ("tiny-slow", "Crashed") in task_runs(own_server)
    assert not {state for _, state in task_runs(own_server)} & {"Running", "Pending"}


@pytest.mark.slow
def test_a_run_that_is_cancelled_in_prefect_saves_and_stops(served: Feeb) -> None:
    process = served.start("run", RECIPE, "--set", "slow.steps=1000", "--set", "slow.step_seconds=0.05")
    wait_until(lambda: slow_state(served) >= 2, 90, "stage slow did not begin")
    (run,) = served.api("POST", "/flow_runs/filter", {})
    assert run["name"] == "tiny-pipeline"
    served.api("POST", f"/flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130, output
    assert "saved at step" in output
    assert "Traceback" not in output
    assert flow_runs(served) == [("tiny-pipeline", "Cancelled")]
    assert task_runs(served)[-1] == ("tiny-slow", "Cancelled")
    traces = [message for (message,) in rows(served, "select message from log") if "Traceback" in message]
    assert not traces


@pytest.mark.slow
def test_only_dead_runs_of_this_workspace_get_a_final_state(served: Feeb) -> None:
    from feeb_pipelines.runs import PROCESS, WORKSPACE, labels_of_process

    mine = labels_of_process(served.workspace)
    dead, other = mine | {PROCESS: "1-dead"}, mine | {WORKSPACE: "another", PROCESS: "1-dead"}
    flow = served.api("POST", "/flows/", {"name": "pipeline"})["id"]

    def run(name: str, state: str, labels: dict[str, str], tags: Sequence[str] = ("feeb",)) -> None:
        body = {"flow_id": flow, "name": name, "labels": labels, "tags": list(tags), "state": {"type": state}}
        id = served.api("POST", "/flow_runs/", body)["id"]
        served.api("POST", "/task_runs/", {"flow_run_id": id, "name": f"task of {name}", "task_key": "t", "dynamic_key": name, "state": {"type": "RUNNING"}})

    run("somebody else's", "RUNNING", {}, ())
    run("another workspace's", "RUNNING", other)
    run("a living process's", "RUNNING", mine)
    run("killed", "RUNNING", dead)
    run("killed at once", "PENDING", dead)
    run("cancelled, then killed", "CANCELLING", dead)
    run("its worker says so", "CRASHED", dead)
    done = served("run", "make_numbers", RECIPE)
    assert done.returncode == 0, done.stderr
    states = dict(flow_runs(served))
    alive = ["somebody else's", "another workspace's", "a living process's"]
    assert [states[name] for name in alive] == ["Running"] * 3
    gone = ["killed", "killed at once", "cancelled, then killed", "its worker says so"]
    assert [states[name] for name in gone] == ["Crashed", "Crashed", "Cancelled", "Crashed"]
    tasks = dict(task_runs(served))
    assert [tasks[f"task of {name}"] for name in alive] == ["Running"] * 3
    assert [tasks[f"task of {name}"] for name in gone] == ["Crashed", "Crashed", "Cancelled", "Crashed"]


@pytest.mark.slow
def test_two_runs_of_one_recipe_at_once_build_it_once(served: Feeb) -> None:
    settings = ("--set", "slow.steps=40", "--set", "slow.step_seconds=0.1")
    first = served.start("run", RECIPE, *settings)
    second = served.start("run", RECIPE, *settings)
    outputs = [p.communicate(timeout=120)[0] for p in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert len(list(served.workspace.glob("slow/*/manifest.json"))) == 1
    assert served.artifacts()["slow"]["metrics"]["started_at"] == 0
    progress = rows(served, "select data, task_run_id is not null from artifact where type = 'progress' and key = 'tiny-slow-progress'")
    assert [(float(percent), linked) for percent, linked in progress] == [(100.0, 1)]
    assert flow_runs(served) == [("tiny-pipeline", "Completed")] * 2


@pytest.mark.slow
def test_a_study_runs_every_recipe_in_one_flow_run(served: Feeb, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"extends: {RECIPE}\nname: study\nvariants: {{few: {{make_numbers.count: 3}}, many: {{make_numbers.count: 5}}}}\n")
    result = served.json("run", study)
    assert {label: stages["sum_numbers"]["metrics"]["total"] for label, stages in result["runs"].items()} == {"study-few": 3, "study-many": 10}
    assert flow_runs(served) == [("study-pipeline", "Completed")]


@pytest.mark.slow
def test_runs_of_a_study_outlive_one_that_fails_and_the_study_ends_with_its_page(served: Feeb, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"extends: {RECIPE}\nname: study\nseeds: [0, 1, 2]\nquick: {{seeds: [0, 1]}}\n"
        "variants: {few: {make_numbers.count: 3}, wrong: {sum_numbers.fail: true, sum_numbers.scale: 3}, many: {make_numbers.count: 5}}\n"
        "claims: {more: {claim: more numbers are more, expect: few < many, metric: total, stage: sum_numbers}}\n"
    )
    done = served("run", study, "--quick", "--jobs", "2")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 of 6 runs failed" in done.stderr
    (page,) = served.workspace.glob("claims/study-quick-*/page.md")
    assert "--quick" in page.read_text()
    assert "| more | more numbers are more | `few < many (total)` |" in page.read_text()
    assert "| -7 (-7 to -7)" in page.read_text()
    finished = [name for name, state in task_runs(served) if state == "Completed" and name.endswith("-page")]
    assert sorted(finished) == ["study-quick-few-seed0-page", "study-quick-many-seed0-page"]  # these stages have no seed: equal runs are made once
    assert len([name for name, _ in task_runs(served) if name == "study-quick-wrong-seed0-sum_numbers"]) == 3, "it is retried twice"


@pytest.mark.slow
def test_parallel_runs_stop_together_and_go_on(served: Feeb, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"extends: {RECIPE}\nname: study\nslow: {{steps: 60, step_seconds: 0.1}}\nvariants: {{few: {{slow.steps: 61}}, many: {{slow.steps: 62}}, last: {{}}}}\n"
    )
    process = served.start("run", study, "--jobs", "2")
    wait_until(lambda: sum(json.loads(p.read_text()) > 3 for p in served.workspace.glob("slow/*/state.json")) == 2, 60, "two runs at work")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    saved = {p.parent.name: json.loads(p.read_text()) for p in served.workspace.glob("slow/*/state.json")}
    assert len(saved) == 2  # the third had not begun, and did not
    result = served.json("run", study, "--jobs", "3", "--set", "slow.step_seconds=0.01")
    begun = sorted(stages["slow"]["metrics"]["started_at"] for stages in result["runs"].values())
    assert begun == sorted([0, *saved.values()])
    assert flow_runs(served) == [("study-pipeline", "Cancelled"), ("study-pipeline", "Completed")]


@pytest.mark.slow
def test_a_comparison_is_a_flow_run_with_a_task_per_run(served: Feeb, tmp_path: Path) -> None:
    sections = {
        "download": {"sources": [{"name": "files", "paths": ["text"]}], "split_modulus": 4},
        "tokenizer": {"tokenizer": "byte"},
        "pretrain": {"architecture": {"name": "transformer", "num_layers": 1, "d_model": 8, "num_heads": 1}, "seq_len": 16, "batch_size": 2, "max_steps": 3},
    }
    (tmp_path / "text").mkdir()
    for i in range(40):
        (tmp_path / "text" / f"{i}.txt").write_text(f"document {i} says what it says\n" * 3)
    (tmp_path / "base.yaml").write_text(json.dumps({"name": "base", "stages": ["download", "tokenizer", "shard", "pretrain"], **sections}))
    (tmp_path / "wide.yaml").write_text("extends: base.yaml\nname: wide\npretrain: {architecture: {d_model: 16}, compile: 'off'}\n")
    command = ["compare", tmp_path / "base.yaml", tmp_path / "wide.yaml", "--seeds", "2", "--no-tune-lr", "--curve", "none", "--jobs", "2"]
    done = served(*command, "--set", "pretrain.schedule.warmup_steps=1", "--json", timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["verdict"]) == 1
    assert flow_runs(served) == [("compare-base-vs-wide", "Completed")]
    shared = ["base-download", "base-tokenizer", "base-shard"]
    assert sorted(task_runs(served)) == sorted((n, "Completed") for n in [*shared, *(f"{r}-seed{s}-pretrain" for r in ("base", "wide") for s in (0, 1))])
    again = served.json(*command, "--set", "pretrain.schedule.warmup_steps=1", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert again["path"] == result["path"], "a finished comparison needs no server"


@pytest.mark.slow
def test_a_comparison_of_laws_is_a_flow_run_with_a_task_per_run(served: Feeb, tmp_path: Path) -> None:
    small_recipes(tmp_path)
    command = ["compare", "--law", tmp_path / "r.yaml", tmp_path / "idea.yaml", "--target", "2e8"]
    done = served(*command, "--jobs", "2", "--json", timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["target"] == 2e8
    assert flow_runs(served) == [("compare-tiny-vs-idea-law", "Completed")]
    assert sum(name.endswith("-pretrain") for name, _ in task_runs(served)) == 2 * len(result["pairs"]) == 18
    again = served.json(*command, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert again["path"] == result["path"], "a finished comparison needs no server"
    assert served.json(*command, "--plan")["to_train"] == 0
