"""What orchestration costs: the same three tiny stages in one process, and through Prefect with its own server.

    python benchmarks/orchestration.py [repeats]

Prints seconds of the whole command (median), of the stages alone (from their manifests), and the difference.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLUGIN = """
import time
import feebcore as feeb

def run(section, inputs, out):
    (out.path / "x.txt").write_text("x")
    time.sleep(0.2)
    return {"n": 1}

@feeb.hookimpl
def feeb_stages():
    for i, needs in enumerate([(), ("step0",), ("step1",)]):
        yield feeb.StageSpec(f"step{i}", build="bench_steps:run", makes=(f"x{i}",), needs=tuple(feeb.Need(n.replace("step", "x")) for n in needs), process="PROCESS", summary="Sleeps 0.2 s.")
"""


def measure(process: str, in_process: bool) -> tuple[float, float]:
    """Seconds of the command, and of its stages."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "bench_steps.py").write_text(PLUGIN.replace("PROCESS", process))
        (Path(folder) / "r.yaml").write_text("plugins: [./bench_steps.py]\nstages: [step0, step1, step2]\n")
        command = [sys.executable, "-m", "feeb_pipelines.cli", "run", "r.yaml", "--workspace", "data", "--json"] + (["--in-process"] if in_process else [])
        start = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, env=os.environ | {"DO_NOT_TRACK": "1"})
        seconds = time.perf_counter() - start
        (stages,) = json.loads(done.stdout)["runs"].values()
        return seconds, sum(row["seconds"] for row in stages.values())


def main(repeats: int) -> None:
    for name, process, in_process in (
        ("in one process", "inline", True),
        ("Prefect, inline stages", "inline", False),
        ("Prefect, worker stages", "worker", False),
    ):
        rows = [measure(process, in_process) for _ in range(repeats)]
        whole, stages = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:24} command {whole:6.2f} s, stages {stages:6.2f} s, apart from them {whole - stages:6.2f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
