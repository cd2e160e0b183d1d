"""Kills `feeb run RECIPE` with SIGKILL once in every stage, runs it again each time, and says what it found.

    python benchmarks/kill_each_stage.py experiments/quickstart.yaml WORKSPACE [REFERENCE_WORKSPACE]

For each stage: seconds into the stage at the kill, processes left behind after 20 s, and how the next run took it up. With
a reference workspace, in which the same recipe ran undisturbed, the content digests of all stages are compared.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from feebcore import recipe as recipes
from feebcore.artifacts import Workspace
from feebcore.files import read_jsonl
from feebcore.run.plan import plan


def left_behind(workspace: Path, seconds: float) -> int:
    """Living processes that name the workspace, after waiting up to `seconds` for them to end."""
    until = time.time() + seconds
    while True:
        found = 0
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid() and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found += str(workspace).encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        if not found or time.time() > until:
            return found
        time.sleep(0.3)


def main(path: Path, workspace: Path, reference: Path | None) -> None:
    command = [sys.executable, "-m", "feeb_pipelines.cli", "run", str(path), "--workspace", str(workspace)]
    random.seed(0)
    for stage in recipes.load(path).stages:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        while not any(r["kind"] == "begin" for f in workspace.glob(f"{stage}/*/events.jsonl") for r in read_jsonl(f)) and process.poll() is None:
            time.sleep(0.01)
        wait = random.uniform(0.0, 0.4 if stage in ("download", "tokenizer", "shard", "report") else 12.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        ended = process.poll()
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = left_behind(workspace, 20)
        (item,) = [i for i in plan(recipes.load(path), Workspace(workspace)) if i.stage == stage]
        print(
            f"{stage:10} killed {wait:5.1f} s after its begin{'' if ended is None else ' (had ended)'}: {left} processes left; next run: {item.status}",
            flush=True,
        )
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True)
    print(f"last run: exit status {done.returncode}, {time.time() - begin:.0f} s")
    if reference:
        digests = [{a.stage: a.digest for _, a in Workspace(w).all() if a} for w in (reference, workspace)]
        for stage, digest in digests[0].items():
            print(f"{stage:10} {'same content' if digests[1].get(stage) == digest else 'other content'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).absolute(), Path(sys.argv[3]) if len(sys.argv) > 3 else None)
