"""The whole chain through Prefect: artifacts and metrics of every stage, reuse, kills in three stages, the Python API."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feebcore.artifacts import Workspace
from feebcore.files import read_jsonl

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
RECIPE = HERE / "tiny.yaml"
STAGES = ["download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate", "report"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


def feeb(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "feeb_pipelines.cli", *map(str, arguments)], capture_output=True, text=True, timeout=500, **options)


def processes_of(workspace: Path) -> list[str]:
    """Command lines of living processes that name this workspace."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
                if alive and (str(workspace) in command or str(workspace) in environment):
                    found.append(command)
    return found


def none_left(workspace: Path, seconds: float) -> list[str]:
    until = time.time() + seconds
    while (left := processes_of(workspace)) and time.time() < until:
        time.sleep(0.3)
    return left


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which `feeb run` of the tiny recipe has finished, and what it printed."""
    workspace = tmp_path_factory.mktemp("chain") / "data"
    done = feeb("run", RECIPE, "--workspace", workspace)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return workspace, done.stdout


def test_every_stage_leaves_a_finished_artifact_with_its_metrics(finished):
    workspace, printed = finished
    rows = {r["stage"]: r for r in json.loads(feeb("runs", "--json", "--workspace", workspace).stdout)}
    assert set(rows) == set(STAGES)
    assert {r["status"] for r in rows.values()} == {"finished"}
    assert rows["pretrain"]["metrics"]["val_bits_per_byte"] > 0
    assert {"E", "A", "B", "alpha", "beta", "intervals", "flags"} <= set(rows["sweep"]["metrics"]["law"])
    assert {"heldout_relative_error", "nearest_run_error"} <= set(rows["sweep"]["metrics"])
    assert {"value", "low", "high", "n"} <= set(rows["rl"]["metrics"]["accuracy_before"])
    assert {"value", "low", "high", "n"} <= set(rows["rl"]["metrics"]["accuracy_after"])
    assert set(rows["evaluate"]["metrics"]["bits_per_byte"]) == {"pretrain", "sft", "rl"}
    assert "report.html" in printed


def test_the_report_is_one_file_that_loads_nothing(finished):
    workspace, _ = finished
    (page,) = workspace.glob("report/*/report.html")
    text = page.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.search(r"url\((?!['\"]?data:)", text)
    assert list(page.parent.glob("figures/*.png"))


def test_nothing_to_do_is_quick_and_needs_no_server(finished):
    workspace, _ = finished
    assert none_left(workspace, 20) == []
    start = time.time()
    done = feeb("run", RECIPE, "--workspace", workspace)
    assert done.returncode == 0
    assert time.time() - start < 20
    assert none_left(workspace, 0) == []


def test_no_process_is_left_after_a_run(finished):
    assert none_left(finished[0], 20) == []


def test_all_hashes_verify(finished):
    assert all(artifact.verify() == [] for _, artifact in Workspace(finished[0]).all())


def begun(workspace: Path, stage: str, process: subprocess.Popen, rows: int) -> None:
    """Wait until the stage has made some progress."""
    until = time.time() + 240
    while time.time() < until:
        for events in workspace.glob(f"{stage}/*/events.jsonl"):
            if sum(r["kind"] in ("progress", "log") for r in read_jsonl(events)) >= rows:
                return
        assert process.poll() is None, f"the run ended before {stage} began"
        time.sleep(0.02)
    raise AssertionError(f"{stage} did not begin")


def test_killed_in_three_stages_it_finishes_with_the_same_bits(finished, tmp_path):
    workspace = tmp_path / "data"
    (workspace / ".prefect").mkdir(parents=True)
    for file in (finished[0] / ".prefect").glob("prefect.db*"):  # making the server's database anew takes longer than a stage
        shutil.copy(file, workspace / ".prefect")
    for stage, rows in (("pretrain", 3), ("sweep", 2), ("rl", 2)):
        process = subprocess.Popen(
            [sys.executable, "-m", "feeb_pipelines.cli", "run", str(RECIPE), "--workspace", str(workspace)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        begun(workspace, stage, process, rows)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert none_left(workspace, 25) == [], f"processes survive a kill in {stage}"
    done = feeb("run", RECIPE, "--workspace", workspace)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    digests = [{a.stage: a.digest for _, a in Workspace(w).all() if a and a.stage in ("shard", "pretrain", "sft", "rl")} for w in (finished[0], workspace)]
    assert digests[0] == digests[1]


def test_the_python_api_page_runs(finished, tmp_path):
    workspace, _ = finished
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python-api.md").read_text(), flags=re.M | re.S)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks).replace('"quickstart"', '"tiny"'))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"FEEB_WORKSPACE": str(workspace)})
    assert done.returncode == 0, done.stderr
    assert "shape: (" in done.stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_the_report_opens_in_a_browser_without_console_errors(finished, tmp_path):
    (page,) = finished[0].glob("report/*/report.html")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}", "--enable-logging=stderr", f"--screenshot={tmp_path}/shot.png", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "shot.png").stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
