"""Ranks of one stage live and die together: outcomes, failures, stops, and no orphan after any kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from feebcore import recipe
from feebcore.artifacts import Workspace, read_artifact
from feebcore.errors import Interrupted, StageFailed
from feebcore.files import read_json, read_jsonl
from feebcore.run.build import run_all

RECIPE = "name: toy\nplugins: [./toy_ranks.py]\nstages: [crowd]\n"


@pytest.fixture
def folder(tmp_path):
    sys.modules.pop("toy_ranks", None)
    shutil.copy(Path(__file__).with_name("toy_ranks.py"), tmp_path)
    (tmp_path / "toy.yaml").write_text(RECIPE)
    return tmp_path


def settings(ranks: int, **changes: object) -> list[str]:
    return [f"crowd.parallel={{strategy: ddp, ranks: {ranks}}}", *(f"crowd.{k}={v}" for k, v in changes.items())]


def run(folder, ranks, told=None, **changes):
    on_progress = told.append if told is not None else None
    return run_all(recipe.load(folder / "toy.yaml", settings(ranks, **changes)), Workspace(folder / "data"), on_progress=on_progress, in_process=False)["crowd"]


def place_of(folder: Path) -> Path:
    (place,) = (folder / "data" / "crowd").glob("toy-*")
    return place


def test_rank_0_tells_and_writes_and_every_rank_has_its_log(folder):
    told: list[dict] = []
    artifact = run(folder, 3, told)
    assert artifact.metrics == {"world": 3, "rank": 0}
    assert read_json(artifact.path / "crowd.json")["world"] == 3
    assert [row["text"].split()[1] for row in told if row["kind"] == "log"] == ["0"]
    for rank, name in enumerate(("log.txt", "rank-1.log", "rank-2.log")):
        assert f"hello from {rank}" in (artifact.path / name).read_text()
    assert sum(row["kind"] == "begin" for row in read_jsonl(artifact.path / "events.jsonl")) == 1


def test_the_number_of_ranks_is_no_identity(folder):
    assert run(folder, 2).path == run(folder, 3).path


def test_one_process_is_alone_even_inside_somebody_elses_group(folder, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert run(folder, 1).metrics == {"world": 1, "rank": 0}


@pytest.mark.parametrize("culprit", [0, 2])
@pytest.mark.parametrize("crash", ["raise", "in turn"])
def test_a_failed_rank_ends_the_run_quickly_with_its_own_traceback(folder, culprit, crash):
    """In turn: the others fail as well, because it is gone; else they hang."""
    began = time.monotonic()
    with pytest.raises(StageFailed, match=rf"rank {culprit} of 3: ValueError: as asked \(log: .*{'log.txt' if culprit == 0 else 'rank-2.log'}\)") as caught:
        run(folder, 3, crash=crash, culprit=culprit)
    assert "toy_ranks.py" in str(caught.value)
    assert 'raise ValueError("as asked")' in str(caught.value)
    assert "connection closed" not in str(caught.value)
    assert time.monotonic() - began < 9
    assert all(gone(int((place_of(folder) / f"pid-{rank}").read_text()), 0.5) for rank in range(3))


def test_an_error_meant_for_the_user_has_no_traceback(folder):
    with pytest.raises(StageFailed, match="rank 1 of 2: the text is too short; add documents") as caught:
        run(folder, 2, crash="told", culprit=1)
    assert "Traceback" not in str(caught.value)


def test_a_rank_that_is_killed_is_named_with_the_signal(folder):
    with pytest.raises(StageFailed, match="rank 1 of 2 was killed by signal 9") as caught:
        run(folder, 2, crash="signal", culprit=1)
    assert "hello from 1" in str(caught.value)


@pytest.mark.slow
def test_after_a_failure_the_next_run_starts_clean(folder):
    with pytest.raises(StageFailed):
        run(folder, 2, crash="raise", culprit=1)
    assert (place_of(folder) / "rank-1.json").exists()
    artifact = run(folder, 2)
    assert not (artifact.path / "rank-1.json").exists()


DRIVER = """
import sys
from feebcore import recipe
from feebcore.artifacts import Workspace
from feebcore.run.build import run_all
run_all(recipe.load(sys.argv[1], sys.argv[3:]), Workspace(sys.argv[2]), in_process=False)
"""


def drive(folder: Path, ranks: int, **changes: object) -> tuple[subprocess.Popen, list[int]]:
    """A process that runs the recipe, and the pids of its ranks once all have begun."""
    command = [sys.executable, "-c", DRIVER, str(folder / "toy.yaml"), str(folder / "data"), *settings(ranks, **changes)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    until = time.time() + 30
    while time.time() < until:
        found = list((folder / "data" / "crowd").glob("toy-*/pid-*"))
        if len(found) == ranks and all(f.read_text() for f in found):
            return process, [int(f.read_text()) for f in found]
        time.sleep(0.05)
    process.kill()
    raise AssertionError("the ranks did not start")


def gone(pid: int, seconds: float) -> bool:
    until = time.time() + seconds
    while True:
        if not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return True
        if time.time() > until:
            return False
        time.sleep(0.1)


def test_every_rank_saves_and_ends_when_the_parent_is_killed(folder):
    process, pids = drive(folder, 3, seconds=60)
    process.kill()
    process.wait()
    assert all(gone(pid, 5) for pid in pids)
    assert {f.name for f in place_of(folder).glob("saved-*.json")} == {f"saved-{rank}.json" for rank in range(3)}


@pytest.mark.slow
def test_ranks_that_hang_are_killed_with_their_parent_within_ten_seconds(folder):
    source = (folder / "toy_ranks.py").read_text()
    (folder / "toy_ranks.py").write_text(source.replace("if out.stop_requested:", "if False:"))
    process, pids = drive(folder, 2, seconds=60)
    process.kill()
    process.wait()
    assert all(gone(pid, 11) for pid in pids)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_reaches_every_rank_and_leaves_nothing_behind(folder, number):
    process, pids = drive(folder, 3, seconds=60)
    process.send_signal(number)
    _, errors = process.communicate(timeout=12)
    assert b"Interrupted" in errors
    assert all(gone(pid, 0.5) for pid in pids)
    assert len(list(place_of(folder).glob("saved-*.json"))) == 3
    assert read_artifact(place_of(folder)) is None


def test_a_stop_that_is_sent_to_every_process_of_a_job_is_one_stop(folder):
    """A cluster's scheduler signals them all, and the parent passes it on: no rank may take the second one for 'at once'."""
    process, pids = drive(folder, 2, seconds=60, to_save=0.5)
    for pid in [*pids, process.pid]:
        os.kill(pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=12)
    assert b"Interrupted: rank" in errors
    assert len(list(place_of(folder).glob("saved-*.json"))) == 2


def test_a_new_run_waits_for_the_ranks_of_a_killed_one(folder):
    """They may still be saving; two at one folder would write into each other's files."""
    process, _ = drive(folder, 2, seconds=60, to_save=2)
    process.kill()
    process.wait()
    told: list[dict] = []
    artifact = run(folder, 2, told)
    assert any("still saving" in row.get("text", "") for row in told)
    assert (artifact.path / "saved-1.json").stat().st_mtime < (artifact.path / "crowd.json").stat().st_mtime


def test_two_runs_at_once_in_threads_build_once(folder):
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(run(folder, 2, seconds=0.3).path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1]
    assert sum(row["kind"] == "begin" for row in read_jsonl(place_of(folder) / "events.jsonl")) == 1


def test_a_rank_that_is_asked_to_stop_before_it_can_answer_has_not_failed(folder):
    process, _ = drive(folder, 2, seconds=60, culprit=0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=12)
    assert b"Interrupted: rank 1 has saved" in errors


def test_stopping_in_this_process_raises_interrupted(folder):
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(Interrupted):
        run(folder, 2, seconds=60)
