"""Studies of real processes: kills, failures, twins, dependencies, proposals that depend on results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from feebcore.artifacts import Workspace
from feebcore.errors import Interrupted, RecipeError
from feebcore.files import read_json
from feebcore.hardware import cuda_devices
from feebcore.run.launch import one_run
from feebcore.study.executors import InProcess, executing
from feebcore.study.ledger import Ledger
from feebcore.study.run import run_study
from feebcore.study.runs import RunRecord, RunSpec, missing, run_id

sys.path.insert(0, str(Path(__file__).parent))
from toy_study import PLUGIN, spec, study, text_of


def attempts(root: Path, name: str) -> int:
    (path,) = (root / "data" / "count").glob(f"{name}-*/attempts")
    return len(path.read_text().splitlines())


def digests(root: Path) -> dict[str, str]:
    return {path.parent.name: read_json(path)["digest"] for path in (root / "data" / "count").glob("*/manifest.json")}


def children_of(root: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if str(root).encode() in (entry / "environ").read_bytes() and (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
def test_a_study_killed_five_times_equals_the_undisturbed_one(tmp_path: Path) -> None:
    study(tmp_path / "whole", [spec(tmp_path / "whole", f"r{i}", number=i, steps=8) for i in range(6)])
    root = tmp_path / "killed"
    command = [sys.executable, str(Path(__file__).with_name("toy_study.py")), str(root), "6"]
    killed = 0
    while killed < 5:
        process = subprocess.Popen(command, env=os.environ | {"MARK": str(root)})
        began = sum(p.stat().st_size for p in root.glob("data/count/*/events.jsonl"))
        while process.poll() is None and sum(p.stat().st_size for p in root.glob("data/count/*/events.jsonl")) < began + 400:
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it was killed five times"
        process.kill()
        process.wait()
        killed += 1
    subprocess.run(command, check=True, env=os.environ | {"MARK": str(root)})
    assert digests(root) == digests(tmp_path / "whole")
    assert not children_of(root), "workers outlived their parent"
    with Ledger(root / "ledger.sqlite") as ledger:
        assert ledger.counts()["done"] == 6
        assert sum(r.attempts for r in ledger.records()) > 6
        assert not any(r.failures for r in ledger.records()), "a kill of the whole is no failure of a run"


@pytest.mark.slow
def test_two_processes_share_one_study(tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__).with_name("toy_study.py")), str(tmp_path), "6"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert [attempts(tmp_path, f"r{i}") for i in range(6)] == [1] * 6
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.counts()["done"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("how", ["fails", "dies"])
def test_a_failing_run_of_twelve_is_retried_twice_and_the_others_go_on(tmp_path: Path, how: str) -> None:
    specs = [spec(tmp_path, f"r{i}", number=i, steps=1, **({how: 99} if i == 3 else {how: 1} if i == 5 else {})) for i in range(12)]
    records = study(tmp_path, specs)
    assert {name for name, r in records.items() if r.status == "done"} == {f"r{i}" for i in range(12) if i != 3}
    assert (records["r3"].status, records["r3"].failures, attempts(tmp_path, "r3")) == ("failed", 3, 3)
    assert attempts(tmp_path, "r5") == 2
    (sentence,) = missing(records.values())
    assert sentence.startswith("r3 failed 3 times: ")
    assert ("number 3 is not liked" if how == "fails" else "killed by signal 9; usually out of memory") in sentence
    again = study(tmp_path, specs)  # by then the reason may be gone
    assert (again["r3"].failures, attempts(tmp_path, "r3")) == (3, 6)
    assert attempts(tmp_path, "r4") == 1


def test_a_run_that_diverges_is_a_result_and_never_tried_again(tmp_path: Path) -> None:
    specs = [spec(tmp_path, "bad", diverges=True), spec(tmp_path, "good"), spec(tmp_path, "child", number=1, after=("bad",))]
    for _ in range(2):
        records = study(tmp_path, specs)
        assert {name: r.status for name, r in records.items()} == {"bad": "diverged", "good": "done", "child": "failed"}
    assert records["bad"].reason == "step 1: loss nan"
    assert "waits for bad, which diverged" in records["child"].reason
    assert attempts(tmp_path, "bad") == 1
    assert len(missing(records.values())) == 1


def test_equal_runs_are_made_once_in_a_study_and_in_a_workspace(tmp_path: Path) -> None:
    first = study(tmp_path, [spec(tmp_path, "a", number=7, steps=9, step_seconds=0.02), spec(tmp_path, "b", number=7, steps=9)])
    assert first["a"].result == first["b"].result
    assert len(digests(tmp_path)) == 1
    (tmp_path / "ledger.sqlite").unlink()
    other = study(tmp_path, [spec(tmp_path, "c", number=7, steps=9)])
    assert other["c"].result == first["a"].result
    assert other["c"].id == first["a"].id == next(iter(digests(tmp_path))).rpartition("-")[2], "the id is the artifact's fingerprint"
    assert attempts(tmp_path, "a") == 1


def test_a_run_whose_artifact_was_removed_is_made_again(tmp_path: Path) -> None:
    import shutil

    specs = [spec(tmp_path, "a", number=1), spec(tmp_path, "b", number=2)]
    before = study(tmp_path, specs)
    shutil.rmtree(tmp_path / "data" / before["a"].result["artifacts"]["count"])
    after = study(tmp_path, specs)
    assert after["a"].result["text"] == before["a"].result["text"]
    assert len(digests(tmp_path)) == 2


def test_what_waits_is_begun_after_and_priority_goes_first(tmp_path: Path) -> None:
    specs = [spec(tmp_path, "last", number=1, after=("a", "b")), spec(tmp_path, "a", number=2), spec(tmp_path, "b", number=3, priority=1)]
    ended: list[str] = []
    study(tmp_path, specs, jobs=1, on_ended=lambda record: ended.append(record.name))
    assert ended == ["b", "a", "last"]


def test_a_proposer_is_asked_again_with_what_is_known(tmp_path: Path) -> None:
    def propose(known: Mapping[str, RunRecord]) -> list[RunSpec]:
        done = [r for r in known.values() if r.status == "done"]
        return [spec(tmp_path, f"r{len(done)}", number=len(done))] if len(done) == len(known) and len(done) < 3 else []

    records = study(tmp_path, [], propose=propose)
    assert list(records) == ["r0", "r1", "r2"]


def test_a_run_whose_turn_has_not_come_again_is_not_dropped(tmp_path: Path) -> None:
    """A study was stopped after its second round was planned; the run of the first round that had failed is tried again before it."""

    def propose(known: Mapping[str, RunRecord]) -> list[RunSpec]:
        first = spec(tmp_path, "first", fails=3)
        ended = "first" in known and known["first"].ended
        return [first, spec(tmp_path, "second", number=2)] if ended else [first]

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, [], jobs=1, propose=propose, on_ended=_interrupt)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        second = spec(tmp_path, "second", number=2)
        ledger.plan(
            [second, spec(tmp_path, "other", number=3)], {"second": run_id(second.recipe, second.stages, Workspace(tmp_path / "data"), {}), "other": "0" * 12}
        )
    records = study(tmp_path, [], jobs=1, propose=propose)
    assert {name: r.status for name, r in records.items()} == {"first": "done", "second": "done"}
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        assert ledger.record("other").reason == "it is not proposed any more"


def _interrupt(record: RunRecord) -> None:
    raise KeyboardInterrupt


def test_workers_are_warm_and_share_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    records = study(tmp_path, [spec(tmp_path, f"r{i}", number=i, steps=2, step_seconds=0.02) for i in range(8)])
    assert len({r.result["pid"] for r in records.values()}) == 2
    assert {r.result["threads"] for r in records.values()} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_everything_in_this_process(tmp_path: Path) -> None:
    specs = [spec(tmp_path, "a", number=1), spec(tmp_path, "b", number=2, fails=99)]
    with Ledger(tmp_path / "ledger.sqlite") as ledger, executing(InProcess()):
        records = run_study(lambda known: specs, ledger, Workspace(tmp_path / "data"), {}, text_of, lambda row: None)
    assert [(r.status, r.result.get("pid")) for r in records] == [("done", os.getpid()), ("failed", None)]


def test_a_process_with_many_open_files_has_workers_too(tmp_path: Path) -> None:
    """Descriptors from 1024 on, which select.select refuses."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("no more than 1,024 open files are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(1030):
                stack.enter_context(open(os.devnull))
            records = study(tmp_path, [spec(tmp_path, "r", number=1, steps=2)], jobs=1)
        assert records["r"].status == "done"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_at_work_and_begins_nothing_else(tmp_path: Path, number: signal.Signals) -> None:
    specs = [spec(tmp_path, f"r{i}", number=i, steps=400, step_seconds=0.02) for i in range(4)]

    def signal_once(row: dict) -> None:
        if row["kind"] == "progress" and not sent:
            sent.append(1)
            os.kill(os.getpid(), number)

    sent: list[int] = []
    from feebcore.study.executors import WarmWorkers

    tmp_path.mkdir(exist_ok=True)
    with Ledger(tmp_path / "ledger.sqlite") as ledger, WarmWorkers(2) as workers, executing(workers):
        began = time.monotonic()
        with pytest.raises(Interrupted):
            run_study(lambda known: specs, ledger, Workspace(tmp_path / "data"), {}, text_of, signal_once)
        assert time.monotonic() - began < 10
        assert ledger.counts() == {"planned": 4, "leased": 0, "done": 0, "failed": 0, "diverged": 0}
    assert 1 <= len(list(tmp_path.glob("data/count/*/state.json"))) <= 2


def test_runs_and_plan_list_what_is_not_done_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from feeb_pipelines.cli import run_command

    options = {"good": {}, "bad": {"count.number": 1, "count.fails": 99}, "wild": {"count.number": 2, "count.diverges": True}}
    recipe = tmp_path / "s.yaml"
    recipe.write_text(json.dumps({"plugins": [str(PLUGIN)], "stages": ["count"], "variants": options}))
    where = ["--workspace", str(tmp_path / "data")]
    assert run_command(["run", str(recipe), "--in-process", *where]) == 1
    capsys.readouterr()
    assert run_command(["runs", "--json", *where]) == 0
    rows = {r["name"]: (r["status"], r["reason"]) for r in json.loads(capsys.readouterr().out)}
    expected = {"s-bad": "failed 3 times: RuntimeError: number 1 is not liked", "s-wild": "step 1: loss nan"}
    assert rows == {"s-good": ("finished", ""), "s-bad": ("failed", expected["s-bad"]), "s-wild": ("diverged", expected["s-wild"])}
    assert run_command(["plan", str(recipe), "--json", *where]) == 0
    plan = {r["run"]: (r["status"], r["differs"]) for r in json.loads(capsys.readouterr().out)}
    assert plan["s-good"] == ("reuse", [])
    assert plan["s-bad"] == ("continue", [f"failed: {expected['s-bad']}"])
    assert plan["s-wild"] == ("diverged", [f"diverged: {expected['s-wild']}"])


def test_launch_trains_one_run_and_refuses_a_study(tmp_path: Path) -> None:
    recipe = tmp_path / "s.yaml"
    recipe.write_text(json.dumps({"plugins": [str(PLUGIN)], "stages": ["count"], "variants": {"a": {}, "b": {"count.number": 1}}, "seeds": [3, 4]}))
    with pytest.raises(RecipeError, match=r"s.yaml: a study of 4 runs, and this trains one; use `feeb run`, or add --set variants={} --set seeds=\[0\]"):
        one_run(recipe, [])
    assert one_run(recipe, ["variants={}", "seeds=[5]"]).seed == 5


def test_the_id_of_a_chain_stands_for_what_is_not_built_yet(tmp_path: Path) -> None:
    ids = [run_id(one.recipe, one.stages, Workspace(tmp_path), {}) for one in (spec(tmp_path, name, number=n) for name, n in (("a", 1), ("b", 2), ("c", 1)))]
    assert ids[0] == ids[2] != ids[1]


def test_devices_are_those_that_the_environment_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-abc")
    assert cuda_devices() == ["2", "GPU-abc"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cuda_devices() == []


@pytest.mark.slow
def test_a_worker_has_a_cuda_device_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-5,test-6")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    specs = [spec(tmp_path, f"r{i}", number=i, steps=2, step_seconds=0.05, device="auto") for i in range(4)]
    records = study(tmp_path, [*specs, spec(tmp_path, "cpu", number=9)])
    assert {r.result["device"] for name, r in records.items() if name != "cpu"} == {"test-5", "test-6"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "test-5")
    one = study(tmp_path, [spec(tmp_path, f"q{i}", number=20 + i, steps=2, step_seconds=0.05, device="auto") for i in range(2)])
    assert {r.status for r in one.values()} == {"done"}, "a slot waits for the device of another"
