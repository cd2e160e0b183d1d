"""The ledger: idempotent plans, leases that outlive nobody, results that are never lost or doubled, ten thousand runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from feebcore.errors import ArtifactError, FeebError
from feebcore.study.ledger import LeaseLost, Ledger, read_records, this_owner
from feebcore.study.planned import state_of
from feebcore.study.runs import RunSpec

ME = "me"


def specs(count: int = 4, **options: object) -> list[RunSpec]:
    return [RunSpec(f"r{i}", None, overrides={"d_model": 16 * i}, flops=1e9, **options) for i in range(count)]  # type: ignore[arg-type]


def plan(ledger: Ledger, *runs: RunSpec, **ids: str) -> list[str]:
    return ledger.plan(runs, {run.name: ids.get(run.name, f"id-{run.name}") for run in runs})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    plan(made, *specs())
    return made


def lease(ledger: Ledger, owner: str = ME, seconds: float = 60) -> str | None:
    record = ledger.lease(owner, seconds)
    return record and record.name


def test_planning_twice_changes_nothing_and_keeps_results(ledger: Ledger) -> None:
    lease(ledger)
    ledger.done("r0", {"loss": 3.5}, ME)
    before = ledger.records()
    assert plan(ledger, *specs()) == []
    assert ledger.records() == before
    assert [r.status for r in before] == ["done", "planned", "planned", "planned"]
    assert before[0].result == {"loss": 3.5}
    assert before[1].overrides == {"d_model": 16}


def test_a_plan_may_grow_but_not_change(ledger: Ledger) -> None:
    assert plan(ledger, *specs(5)) == ["r4"]
    with pytest.raises(FeebError, match="'r0' was planned with other options"):
        plan(ledger, *specs(1), r0="other")
    with pytest.raises(FeebError, match="waits for 'nobody', which is not planned"):
        plan(ledger, RunSpec("late", None, after=("nobody",)))  # type: ignore[arg-type]
    assert len(ledger.records()) == 5


def test_leases_hand_out_each_run_once_by_priority_and_order(ledger: Ledger) -> None:
    plan(ledger, RunSpec("soon", None, priority=1))  # type: ignore[arg-type]
    assert [lease(ledger) for _ in range(6)] == ["soon", "r0", "r1", "r2", "r3", None]
    assert ledger.counts()["leased"] == 5


def test_runs_of_one_id_are_one_run(ledger: Ledger) -> None:
    plan(ledger, RunSpec("twin", None), twin="id-r0")  # type: ignore[arg-type]
    assert [lease(ledger) for _ in range(5)] == ["r0", "r1", "r2", "r3", None]
    ledger.done("r0", {"loss": 1.0}, ME)
    assert {r.name: r.result for r in ledger.records() if r.status == "done"} == {"r0": {"loss": 1.0}, "twin": {"loss": 1.0}}
    plan(ledger, RunSpec("third", None), third="id-r0")  # type: ignore[arg-type]
    assert ledger.record("third").status == "done"


def test_what_waits_is_leased_after_and_fails_with_what_it_waits_for(ledger: Ledger) -> None:
    plan(ledger, RunSpec("b", None, after=("a",), priority=9), RunSpec("a", None, priority=9), RunSpec("c", None, after=("b", "r0")))  # type: ignore[arg-type]
    assert lease(ledger) == "a"
    assert lease(ledger) == "r0"
    ledger.done("a", {}, ME)
    assert lease(ledger) == "b"
    ledger.fail("b", "no", ME)
    assert (ledger.record("c").status, ledger.record("c").reason) == ("failed", "it waits for b, which failed")
    assert ledger.requeue() == ["b", "c"]
    assert lease(ledger) == "b"
    ledger.done("b", {}, ME)
    ledger.done("r0", {}, ME)
    assert {lease(ledger) for _ in range(4)} == {"c", "r1", "r2", "r3"}


def test_a_failure_is_retried_behind_the_others_and_then_final(ledger: Ledger) -> None:
    for others in (3, 0, 0):
        assert lease(ledger) == "r0"
        final = ledger.fail("r0", "out of memory", ME, max_attempts=3)
        for _ in range(others):
            name = lease(ledger)
            assert name != "r0"
            ledger.done(str(name), {}, ME)
    assert final
    assert lease(ledger) is None
    record = ledger.record("r0")
    assert (record.status, record.failures, record.attempts, record.reason) == ("failed", 3, 3, "out of memory")


def test_an_expired_lease_is_handed_out_again_and_its_old_holder_cannot_report(ledger: Ledger) -> None:
    assert lease(ledger, "slow", seconds=0.01) == "r0"
    time.sleep(0.02)
    assert [lease(ledger, "quick") for _ in range(4)] == ["r1", "r2", "r3", "r0"]
    with pytest.raises(LeaseLost, match="leased by quick"):
        ledger.done("r0", {"loss": 1.0}, owner="slow")
    assert ledger.renew("slow") == 0
    ledger.done("r0", {"loss": 2.0}, owner="quick")
    assert (ledger.record("r0").result, ledger.record("r0").attempts) == ({"loss": 2.0}, 2)
    with pytest.raises(LeaseLost, match="no such run"):
        ledger.done("nonsense", {}, ME)


def test_a_renewed_lease_lasts(ledger: Ledger) -> None:
    lease(ledger, seconds=0.05)
    assert ledger.renew(ME, seconds=60) == 1
    time.sleep(0.06)
    assert lease(ledger, "other") == "r1"
    assert ledger.expire() == []


def test_released_and_expired_runs_are_planned_again(ledger: Ledger) -> None:
    lease(ledger)
    ledger.release("r0", ME)
    assert ledger.record("r0").status == "planned"
    lease(ledger, seconds=0.0)
    assert ledger.expire() == ["r0"]
    assert lease(ledger) == "r1"
    assert ledger.expire(everyone=True) == ["r1"]
    assert ledger.counts()["planned"] == 4


def test_what_runs_and_what_waits_is_read_without_writing(ledger: Ledger, tmp_path: Path) -> None:
    lease(ledger, this_owner())
    lease(ledger, "elsewhere/boot/ns:1:2", seconds=-1)
    before = ledger.path.stat().st_mtime_ns
    assert [state_of(r) for r in read_records(ledger.path)] == [("running", "attempt 1"), *[("waiting", "not begun")] * 3]
    assert ledger.path.stat().st_mtime_ns == before
    ledger.close()
    assert [r.status for r in read_records(ledger.path)] == ["leased", *["planned"] * 3]
    assert read_records(tmp_path / "nowhere.sqlite") == []


def test_ten_thousand_runs_are_planned_leased_and_listed_quickly(tmp_path: Path) -> None:
    """Of a lease the quickest tenth counts, and of long calls the CPU's time, so that other work on the machine does not."""
    many = specs(10_000)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        seconds = {"plan": _seconds(lambda: plan(ledger, *many), time.process_time), "list": _seconds(ledger.records, time.process_time)}
        owner = this_owner()
        seconds["lease"] = sorted(_seconds(lambda: ledger.lease(owner)) for _ in range(300))[30]
        seconds["done"] = sorted(_seconds(lambda i=i: ledger.done(f"r{i}", {"loss": 1.0}, owner)) for i in range(300))[30]
    assert max(seconds["plan"], seconds["list"]) < 2, seconds
    assert max(seconds["lease"], seconds["done"]) < 0.002, seconds


def _seconds(what: object, clock: object = time.perf_counter) -> float:
    began = clock()  # type: ignore[operator]
    what()  # type: ignore[operator]
    return clock() - began  # type: ignore[operator]


WORKER = """
import sys, time
from pathlib import Path
from feebcore.study.ledger import Ledger, this_owner
with Ledger(Path(sys.argv[1])) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    while record := ledger.lease(this_owner(), seconds=60):
        ledger.done(record.name, {"by": this_owner()}, owner=this_owner())
        print(record.name, flush=True)
"""


def test_two_processes_share_the_runs_without_overlap(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        plan(ledger, *specs(60))
        workers = [_start(WORKER, ledger.path) for _ in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        outputs = [worker.communicate("go\n", timeout=60)[0].split() for worker in workers]
        assert all(worker.returncode == 0 for worker in workers)
        assert Counter(outputs[0] + outputs[1]) == Counter(f"r{i}" for i in range(60))
        assert all(r.status == "done" and r.attempts == 1 for r in ledger.records())


HOLDER = """
import sys
from pathlib import Path
from feebcore.study.ledger import Ledger, this_owner
record = Ledger(Path(sys.argv[1])).lease(this_owner(), seconds=3600)
print(record.name, flush=True)
sys.stdin.readline()
"""


def test_a_run_whose_holder_was_killed_is_reclaimed_at_once_and_waits_behind_those_that_killed_none(ledger: Ledger) -> None:
    holder = _start(HOLDER, ledger.path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "r0\n"
    assert lease(ledger, this_owner()) == "r1"
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert [lease(ledger, this_owner()) for _ in range(3)] == ["r2", "r3", "r0"]
    assert ledger.record("r0").attempts == 2
    holder.stdout.close()


def test_a_holder_of_another_machine_or_boot_is_trusted_until_its_lease_ends(ledger: Ledger) -> None:
    host, boot, namespace = this_owner().rpartition(":")[0].rpartition(":")[0].split("/")
    assert len(boot) == 36
    lease(ledger, "other-host/123:1:99")
    lease(ledger, f"{host}/{boot[:-1]}x/{namespace}:1:99")  # a clone of this machine, with the same name
    lease(ledger, f"{host}/{boot}/{namespace}:1:99")  # of this one, and gone
    assert [lease(ledger), lease(ledger)] == ["r3", "r2"]
    assert ledger.lease(ME) is None


def test_a_damaged_ledger_and_one_of_an_older_format_are_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ArtifactError, match=r"ledger\.sqlite"):
        Ledger(tmp_path / "ledger.sqlite")
    with contextlib.closing(sqlite3.connect(tmp_path / "old.sqlite")) as old:
        old.execute("CREATE TABLE cells (id TEXT)")
    with pytest.raises(ArtifactError, match=r"old\.sqlite has format 1, this feeb writes 3; remove the file"):
        Ledger(tmp_path / "old.sqlite")


def _start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_prediction_stands_as_it_was_written_first(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as ledger:
        ledger.predict({"a": {"loss": 2.0}, "b": {"loss": 3.0}})
        first = ledger.predictions()
        ledger.predict({"a": {"loss": 1.0}, "c": {"loss": 4.0}})
        assert {name: entry["loss"] for name, entry in ledger.predictions().items()} == {"a": 2.0, "b": 3.0, "c": 4.0}
        assert ledger.predictions()["a"] == first["a"]
    with contextlib.closing(sqlite3.connect(path)) as direct:
        for statement in ("UPDATE predictions SET prediction = '{}'", "DELETE FROM predictions"):
            with pytest.raises(sqlite3.IntegrityError, match="a prediction is not"):
                direct.execute(statement)
        direct.execute("INSERT OR REPLACE INTO predictions VALUES ('a', 0, '{}')")
        assert direct.execute("SELECT COUNT(*) FROM predictions WHERE prediction = '{}'").fetchone() == (0,)
