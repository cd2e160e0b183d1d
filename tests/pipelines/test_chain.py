"""The whole chain through Prefect: artifacts and metrics of every stage, reuse, kills in three stages, the Python API."""

import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from feebcore.artifacts import Workspace
from feebcore.files import read_jsonl
from feebcore.recipe import load
from feebcore.run.build import run_all

from .conftest import HERE, ROOT, Feeb, wait_until

RECIPE = HERE / "chain.yaml"
STAGES = ["download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate", "report"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def finished(shared_server, tmp_path_factory) -> tuple[Feeb, str]:
    """A workspace in which `feeb run` was killed in three stages, left no process, and then finished; and what it printed at last."""
    home, server = shared_server
    feeb = Feeb(tmp_path_factory.mktemp("chain") / "data", server)
    feeb.workspace.mkdir()
    (feeb.workspace / ".prefect").symlink_to(home)
    for stage, rows in (("pretrain", 3), ("sweep", 2), ("rl", 2)):
        process = feeb.start("run", RECIPE)
        wait_until(lambda: process.poll() is not None or progress(feeb, stage) >= rows, 240, f"{stage} did not begin")  # noqa: B023
        assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        feeb.wait_for_no_process(25)
    done = feeb("run", RECIPE, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return feeb, done.stdout


def progress(feeb: Feeb, stage: str) -> int:
    return sum(row["kind"] in ("progress", "log") for events in feeb.workspace.glob(f"{stage}/*/events.jsonl") for row in read_jsonl(events))


@pytest.mark.slow
def test_killed_in_three_stages_it_has_the_bits_of_an_undisturbed_run_in_one_process(finished, tmp_path):
    run_all(load(RECIPE), Workspace(tmp_path))
    stages = ("shard", "pretrain", "sft", "rl")
    whole, killed = ({a.path.name: a.digest for _, a in Workspace(w).all() if a and a.stage in stages} for w in (tmp_path, finished[0].workspace))
    assert whole == killed
    assert len(whole) == 4 + 10, "the runs of the sweep are among them"


def test_every_stage_leaves_a_finished_artifact_with_its_metrics(finished):
    feeb, printed = finished
    rows = feeb.artifacts()
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
    (page,) = finished[0].workspace.glob("report/*/report.html")
    text = page.read_text()
    assert not re.search(r"""(?:src|<link[^>]*href)=["'](?!data:|#)""", text)
    assert not re.search(r"url\((?!['\"]?(?:data:|#))", text)
    assert list(page.parent.glob("figures/*.png"))


def test_nothing_to_do_is_quick_and_no_process_is_left(finished):
    feeb, _ = finished
    feeb.wait_for_no_process()
    start = time.monotonic()
    assert feeb("run", RECIPE, PREFECT_API_URL="http://127.0.0.1:9/api").returncode == 0, "it needs no server"
    assert time.monotonic() - start < 20
    assert not feeb.processes()


def test_all_hashes_verify(finished):
    assert all(artifact.verify() == [] for _, artifact in Workspace(finished[0].workspace).all())


@pytest.mark.slow
def test_the_python_api_page_runs(finished, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "python-api.md").read_text(), flags=re.M | re.S)
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks).replace('"quickstart"', '"tiny"'))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"FEEB_WORKSPACE": str(finished[0].workspace)}
    )
    assert done.returncode == 0, done.stderr
    assert "shape: (" in done.stdout


@pytest.mark.skipif(not shutil.which("chromium"), reason="no Chromium here")
def test_the_report_opens_in_a_browser_without_console_errors(finished, tmp_path):
    (page,) = finished[0].workspace.glob("report/*/report.html")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}", "--enable-logging=stderr", f"--screenshot={tmp_path}/shot.png", page.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (tmp_path / "shot.png").stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
