"""The study ledger: idempotent plans, leases that outlive nobody, results that are never lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from feebcore.errors import ArtifactError, FeebError
from feebcore.protocols import Cell
from feebcore.studies import LeaseLost, Ledger, cell_id, this_owner

INPUTS = {"tokens": "abc"}


def _cells(count: int = 4) -> list[Cell]:
    return [Cell(f"c{i}", {"architecture.d_model": 16 * (i + 1)}, 1e9 * (i + 1), heldout=i == count - 1, budget=1e9) for i in range(count)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path / "ledger.sqlite")
    made.plan(_cells(), INPUTS)
    return made


def test_planning_twice_changes_nothing_and_keeps_results(ledger: Ledger) -> None:
    ledger.done("c1", {"loss": 3.5})
    before = ledger.rows()
    assert ledger.plan(_cells(), INPUTS) == before
    assert [r.status for r in before] == ["planned", "done", "planned", "planned"]


def test_a_plan_may_grow_but_not_change(ledger: Ledger) -> None:
    more = Cell("c9", {"architecture.d_model": 999}, 5.0)
    assert [r.name for r in ledger.plan([*_cells(), more], INPUTS)] == ["c0", "c1", "c2", "c3", "c9"]
    with pytest.raises(FeebError, match="'c0' was planned with other options"):
        ledger.plan([Cell("c0", {"architecture.d_model": 17}, 1e9)], INPUTS)
    with pytest.raises(FeebError, match="other options or inputs"):
        ledger.plan(_cells(), {"tokens": "other"})
    with pytest.raises(FeebError, match="'c0' and 'twin' have the same overrides"):
        ledger.plan([Cell("twin", {"architecture.d_model": 16}, 1e9)], INPUTS)
    assert len(ledger.rows()) == 5


def test_cell_id_depends_on_overrides_and_inputs_only() -> None:
    cell = Cell("a", {"x": 1, "y": 2}, 1.0)
    assert cell_id(cell, INPUTS) == cell_id(Cell("b", {"y": 2, "x": 1}, 3.0), INPUTS)
    assert cell_id(cell, INPUTS) != cell_id(cell, {}) != cell_id(Cell("a", {"x": 1}, 1.0), {})


def test_leases_hand_out_each_cell_once_in_order(ledger: Ledger) -> None:
    names = []
    while row := ledger.lease("someone", seconds=60):
        names.append(row.name)
    assert names == ["c0", "c1", "c2", "c3"]
    assert ledger.counts()["leased"] == 4


def test_lease_by_role(ledger: Ledger) -> None:
    held = ledger.lease("someone", heldout=True)
    assert held is not None
    assert held.name == "c3"
    assert ledger.lease("someone", heldout=True) is None


def test_an_expired_lease_is_handed_out_again_and_its_old_holder_cannot_report(ledger: Ledger) -> None:
    first = ledger.lease("slow", seconds=0.01)
    assert first is not None
    time.sleep(0.02)
    second = ledger.lease("quick", seconds=60)
    assert second is not None
    assert (second.name, second.attempts) == ("c0", 2)
    with pytest.raises(LeaseLost, match="leased by quick"):
        ledger.done("c0", {"loss": 1.0}, owner="slow")
    with pytest.raises(LeaseLost):
        ledger.renew("c0", "slow")
    ledger.done("c0", {"loss": 2.0}, owner="quick")
    assert ledger.rows()[0].result == {"loss": 2.0}


def test_a_renewed_lease_lasts(ledger: Ledger) -> None:
    ledger.lease("me", seconds=0.05)
    ledger.renew("c0", "me", seconds=60)
    time.sleep(0.06)
    again = ledger.lease("other")
    assert again is not None
    assert again.name == "c1"
    assert ledger.expire() == []


def test_released_and_expired_cells_are_planned_again(ledger: Ledger) -> None:
    ledger.lease("me")
    ledger.release("c0", "me")
    assert ledger.rows()[0].status == "planned"
    ledger.lease("me", seconds=0.0)
    assert ledger.expire() == ["c0"]
    assert ledger.rows()[0].status == "planned"


def test_failed_and_censored_cells_stay_with_their_reason(ledger: Ledger) -> None:
    ledger.fail("c0", "out of memory")
    ledger.censor("c1", "loss became NaN at step 7", {"step": 7})
    rows = ledger.rows()
    assert [(r.status, r.why) for r in rows[:2]] == [("failed", "out of memory"), ("censored", "loss became NaN at step 7")]
    assert rows[1].result == {"step": 7}
    leased = ledger.lease("me")
    assert leased is not None
    assert leased.name == "c2"
    with pytest.raises(LeaseLost, match="no such cell"):
        ledger.done("nonsense", {})


WORKER = """
import sys, time
from pathlib import Path
from feebcore.studies import Ledger, this_owner
with Ledger(Path(sys.argv[1])) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    while row := ledger.lease(this_owner(), seconds=60):
        ledger.done(row.name, {"by": this_owner()}, owner=this_owner())
        print(row.name, flush=True)
"""


def test_two_processes_share_the_cells_without_overlap(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.plan([Cell(f"c{i}", {"i": i}, 1.0) for i in range(60)])
        workers = [_start(WORKER, ledger.path) for _ in range(2)]
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        outputs = [worker.communicate("go\n", timeout=60)[0].split() for worker in workers]
        assert all(worker.returncode == 0 for worker in workers)
        assert Counter(outputs[0] + outputs[1]) == Counter(f"c{i}" for i in range(60))
        assert all(r.status == "done" and r.attempts == 1 for r in ledger.rows())


HOLDER = """
import sys
from pathlib import Path
from feebcore.studies import Ledger, this_owner
ledger = Ledger(Path(sys.argv[1]))
row = ledger.lease(this_owner(), seconds=3600)
print(row.name, flush=True)
sys.stdin.readline()
"""


def test_a_cell_whose_holder_was_killed_is_reclaimed_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.plan(_cells())
        holder = _start(HOLDER, ledger.path)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "c0\n"
        while_alive = ledger.lease(this_owner())
        assert while_alive is not None
        assert while_alive.name == "c1"
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        row = ledger.lease(this_owner())
        assert row is not None
        assert (row.name, row.attempts) == ("c0", 2)
        holder.stdout.close()


def test_a_foreign_holder_is_trusted_until_its_lease_ends(ledger: Ledger) -> None:
    ledger.lease("other-host/123:1:99", seconds=60)
    row = ledger.lease(this_owner())
    assert row is not None
    assert row.name == "c1"


def test_a_damaged_ledger_is_named(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ArtifactError, match=r"ledger\.sqlite"):
        Ledger(tmp_path / "ledger.sqlite")


def _start(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
