"""Running stages with no orchestrator: reuse, failure, kills, and what a plan says."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feebcore import recipe as recipes
from feebcore.artifacts import Workspace, read_artifact
from feebcore.errors import ArtifactError, StageFailed
from feebcore.files import read_json, read_jsonl
from feebcore.run.build import build, run_all
from feebcore.run.plan import explain_differences, plan

RECIPE = "name: toy\nplugins: [./toy_stages.py]\nstages: [numbers, total]\n"


@pytest.fixture
def folder(tmp_path):
    shutil.copy(Path(__file__).with_name("toy_stages.py"), tmp_path)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    sys.modules.pop("toy_stages", None)
    yield tmp_path
    sys.modules.pop("toy_stages", None)


def load(folder, *overrides):
    return recipes.load(folder / "toy.yaml", overrides)


@pytest.mark.parametrize("in_process", [True, False])
def test_stages_run_and_then_are_reused(folder, in_process):
    workspace = Workspace(folder / "data")
    events = []
    built = run_all(load(folder), workspace, on_progress=events.append, in_process=in_process)
    assert built["total"].metrics == {"total": 15}
    assert any(e["kind"] == "progress" and e["done"] == 5 for e in events)
    assert [i.status for i in plan(load(folder), workspace)] == ["reuse", "reuse"]
    again = run_all(load(folder), workspace, in_process=in_process)
    assert again["total"].manifest == built["total"].manifest


def test_the_plan_names_the_key_that_differs(folder):
    workspace = Workspace(folder / "data")
    assert [(i.status, i.fingerprint == "") for i in plan(load(folder), workspace)] == [("run", False), ("run", True)]
    run_all(load(folder), workspace)
    items = explain_differences(plan(load(folder, "total.power=2"), workspace), workspace, "toy")
    assert [i.status for i in items] == ["reuse", "run"]
    assert items[1].differs == ("power: default -> 2",)


def test_execution_keys_do_not_cause_work(folder):
    workspace = Workspace(folder / "data")
    run_all(load(folder), workspace)
    assert [i.status for i in plan(load(folder, "numbers.pause=3"), workspace)] == ["reuse", "reuse"]


def test_the_same_content_made_in_another_way_is_reused_downstream(folder):
    """Early cut-off: downstream identity is the content of the input, not how it came about."""
    workspace = Workspace(folder / "data")
    run_all(load(folder), workspace)
    (folder / "toy_stages.py").write_text((folder / "toy_stages.py").read_text() + "\n# a comment\n")
    sys.modules.pop("toy_stages")
    items = explain_differences(plan(load(folder), workspace), workspace, "toy")
    assert items[0].status == "run"
    assert items[0].differs == ("the source code of toy_stages/numbers changed",)


def test_the_source_of_a_part_that_only_watches_causes_no_work(folder):
    watcher = folder / "my_watch.py"
    text = 'import feebcore as feeb\n\n@feeb.hookimpl\ndef feeb_callbacks():\n    yield feeb.CallbackSpec("mywatch", build="m:f", summary="Watches.")\n'
    watcher.write_text(text)
    settings = [f"plugins=[{folder}/toy_stages.py, {watcher}]", "numbers.watchers=[mywatch]"]
    workspace = Workspace(folder / "data")
    built = run_all(load(folder, *settings), workspace)
    assert "mywatch" in str(built["numbers"].manifest["plugins"])
    watcher.write_text(text + "# a comment\n")
    assert [i.status for i in plan(load(folder, *settings), workspace)] == ["reuse", "reuse"]


def test_a_page_is_not_reused_where_it_would_show_something_else(folder):
    workspace = Workspace(folder / "data")
    stages = "stages=[numbers, total, sheet]"
    assert run_all(load(folder, stages), workspace)["sheet"].metrics == {"shown": 2}
    assert [i.status for i in plan(load(folder, stages), workspace)] == ["reuse"] * 3
    assert [i.status for i in plan(load(folder, stages, "description=new"), workspace)] == ["reuse", "reuse", "run"]
    (numbers,) = (a for _, a in workspace.all(stage="numbers"))
    shutil.rmtree(numbers.path)
    run_all(load(folder, "stages=[numbers]"), workspace)  # the same content, made at another time
    assert [i.status for i in plan(load(folder, stages), workspace)] == ["reuse", "reuse", "run"]


def test_a_stage_that_raises_is_reported_with_its_message_and_log(folder):
    with pytest.raises(StageFailed, match=r"ValueError: as asked \(log: .*log.txt\)"):
        run_all(load(folder, "numbers.crash=raise"), Workspace(folder / "data"), in_process=False)


def test_a_worker_that_is_killed_is_a_failure_not_a_success(folder):
    with pytest.raises(StageFailed, match="killed by signal 9"):
        run_all(load(folder, "numbers.crash=die"), Workspace(folder / "data"), in_process=False)


def test_a_stage_that_says_it_makes_a_model_must_write_one(folder):
    with pytest.raises(ArtifactError, match=r"stage empty_model makes model, so it must have model/model.json; it has "):
        run_all(load(folder, "stages=[empty_model]"), Workspace(folder / "data"))
    assert read_artifact(next((folder / "data" / "empty_model").glob("toy-*"))) is None


def test_what_a_killed_worker_had_started_ends_too(folder):
    with pytest.raises(StageFailed, match="killed by signal 9"):
        run_all(load(folder, "numbers.crash=orphan"), Workspace(folder / "data"), in_process=False)
    (child,) = (folder / "data").glob("numbers/*/child")
    assert gone(int(child.read_text()), 5)


def test_a_worker_imports_nothing_from_the_current_folder(folder, monkeypatch):
    (folder / "tempfile.py").write_text("raise SystemExit('a file of the current folder ran')\n")
    monkeypatch.chdir(folder)
    built = run_all(load(folder), Workspace(folder / "data"), in_process=False)
    assert built["numbers"].metrics == {"count": 5}


def test_after_a_kill_the_stage_continues_in_the_same_folder(folder):
    workspace = Workspace(folder / "data")
    with pytest.raises(StageFailed):
        run_all(load(folder, "numbers.crash=die"), workspace, in_process=False)
    (item, _) = plan(load(folder), workspace)
    assert item.status == "continue"
    built = run_all(load(folder), workspace, in_process=False)
    assert built["numbers"].path == item.path
    assert built["total"].metrics == {"total": 15}


DRIVER = """
import sys
from feebcore import recipe
from feebcore.artifacts import Workspace
from feebcore.run.build import run_all
run_all(recipe.load(sys.argv[1], ["numbers.pause=0.3", "numbers.count=20"]), Workspace(sys.argv[2]), in_process=False)
"""


def drive(folder):
    """A process that runs the recipe; returns it and its worker's pid once the worker has begun."""
    process = subprocess.Popen([sys.executable, "-c", DRIVER, str(folder / "toy.yaml"), str(folder / "data")], stderr=subprocess.DEVNULL)
    for _ in range(600):  # 30 s: the machine may be busy
        time.sleep(0.05)
        for events in (folder / "data").glob("numbers/*/events.jsonl"):
            for row in read_jsonl(events):
                if row["kind"] == "log":
                    return process, int(row["text"].split()[1])
    process.kill()
    raise AssertionError("the worker did not start")


def gone(pid, seconds):
    until = time.time() + seconds
    while time.time() < until:
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_worker_ends_with_its_parent_even_when_that_is_killed(folder):
    process, worker = drive(folder)
    process.kill()
    process.wait()
    assert gone(worker, 11)


def test_a_worker_whose_parent_was_killed_is_asked_once_and_may_save(folder):
    process, worker = drive(folder)
    process.kill()
    process.wait()
    assert gone(worker, 11)
    (path,) = (folder / "data" / "numbers").glob("toy-*")
    assert read_json(path / "result.json")["error"] == "Interrupted"


def test_ctrl_c_lets_the_worker_save_and_leaves_nothing_behind(folder):
    process, worker = drive(folder)
    process.send_signal(signal.SIGINT)
    assert process.wait(12) != 0
    assert gone(worker, 1)
    (path,) = (folder / "data" / "numbers").glob("toy-*")
    assert read_artifact(path) is None
    assert (path / "state.json").exists()


def test_two_runs_at_once_build_once(folder):
    workspace = Workspace(folder / "data")
    told, results = [], []

    def run():
        results.append(run_all(load(folder, "numbers.pause=0.1"), workspace, on_progress=told.append, in_process=False))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.3)
    for thread in threads:
        thread.join()
    assert results[0]["numbers"].manifest == results[1]["numbers"].manifest
    assert any(e["kind"] == "log" and "waiting for it" in e["text"] for e in told)
    begins = [e for e in read_jsonl(results[0]["numbers"].path / "events.jsonl") if e["kind"] == "begin"]
    assert len(begins) == 1


def test_a_run_can_be_repeated_from_its_own_folder(folder):
    first = run_all(load(folder, "numbers.count=3"), Workspace(folder / "data"))["total"]
    again = recipes.load(first.path / "recipe.json")
    second = run_all(again, Workspace(folder / "elsewhere"))["total"]
    assert second.digest == first.digest
    assert second.fingerprint == first.fingerprint


def test_the_manifest_says_what_the_run_was_made_with(folder):
    manifest = run_all(load(folder), Workspace(folder / "data"))["total"].manifest
    assert manifest["environment"]["packages"]["torch"]
    assert manifest["plugins"][0]["part"] == "toy_stages/total"
    assert manifest["inputs"]["numbers"]["stage"] == "numbers"
    assert manifest["files"]["total.json"]["size"] > 0
    assert os.environ.get("HOME", "") not in str(manifest["environment"].get("packages"))


def test_build_needs_no_torch(folder):
    code = f"import sys; from feebcore import recipe; from feebcore.run.build import run_all; recipe.load({str(folder / 'toy.yaml')!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_build_refuses_a_folder_with_a_damaged_input(folder):
    workspace = Workspace(folder / "data")
    built = run_all(load(folder), workspace)
    (built["numbers"].path / "numbers.json").write_text("[")
    with pytest.raises(Exception, match=r"numbers.json has 1 bytes"):
        build(load(folder, "total.power=3"), "total", workspace, {"numbers": workspace.find("numbers", built["numbers"].fingerprint)})


def test_a_plugin_file_edited_in_a_living_process_runs_as_it_is_now(folder):
    """As next to a notebook: the fingerprint has the new source, so the result must be the new code's."""
    workspace = Workspace(folder / "data")
    assert run_all(load(folder), workspace)["total"].metrics == {"total": 15}
    source = folder / "toy_stages.py"
    source.write_text(source.read_text().replace('return {"total": sum(', 'return {"total": 1000 + sum('))
    assert run_all(load(folder), workspace)["total"].metrics == {"total": 1015}
