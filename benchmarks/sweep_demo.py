"""A scaling law from a budget and a target, from nothing: how long it takes, and how far off what was predicted before it ran.

    python benchmarks/sweep_demo.py [--seeds 0 1 2 3 4] [--budget 4.5e13] [--target 1.5e14] [--jobs 2] [--kills 3] [--out FOLDER]

Each seed runs `feeb sweep run experiments/sweep-small.yaml` in a workspace of its own. With --kills each seed is run a second time and
its process is killed with SIGKILL that many times, after a random number of finished runs, and started again with the same command;
its law.json must be the same to the last bit. Exit status 1 where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path(__file__).parents[1] / "experiments" / "sweep-small.yaml"
LONGEST_WAIT = 30.0
"""Seconds after a finished run until the process is killed, at most."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--budget", type=float, default=4.5e13)
    parser.add_argument("--target", type=float, default=1.5e14)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    root = options.out or Path(tempfile.mkdtemp(prefix="sweep-demo-"))
    same = True
    print("| seed | minutes | runs | compute, top over cheapest | held out over top rung, median run | predicted | 95% interval | measured | error | inside |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        folder = root / f"seed{seed}"
        seconds = run(folder, options, seed)
        law = document(folder)
        print(row(law, runs(folder), seed, seconds), flush=True)
        if options.kills:
            killed = root / f"seed{seed}-killed"
            seconds = run_killed(killed, options, seed)
            equal = document(killed) == law
            print(f"seed {seed}, killed {options.kills} times, {seconds / 60:.1f} minutes: law.json {'is the same' if equal else 'DIFFERS'}", flush=True)
            same = same and equal
    print(f"in {root}")
    sys.exit(not same)


def command(folder: Path, options: argparse.Namespace, seed: int) -> list[str]:
    feeb = str(Path(sys.executable).parent / "feeb")
    sets = ["--set", f"seed={seed}"] if seed else []
    asked = ["--budget", f"{options.budget:g}", "--target", f"{options.target:g}", "--jobs", str(options.jobs)]
    return [feeb, "sweep", "run", str(RECIPE), *asked, *sets, "--workspace", str(folder)]


def run(folder: Path, options: argparse.Namespace, seed: int) -> float:
    """Seconds of the sweep; its output goes beside its workspace."""
    started = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".log"), "a") as log:
        subprocess.run(command(folder, options, seed), check=True, stdout=log, stderr=log)
    return time.monotonic() - started


def run_killed(folder: Path, options: argparse.Namespace, seed: int) -> float:
    """Seconds of the sweep with its kills; each comes after a number of finished runs that is drawn beforehand."""
    started = time.monotonic()
    draw = random.Random(seed)
    kills = sorted(draw.sample(range(2, 28), options.kills))
    for number in kills:
        with open(folder.with_suffix(".log"), "a") as log:
            process = subprocess.Popen(command(folder, options, seed), stdout=log, stderr=log)
        while process.poll() is None and finished(folder) < number:
            time.sleep(0.5)
        time.sleep(draw.uniform(0, LONGEST_WAIT))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    run(folder, options, seed)
    return time.monotonic() - started


def runs(folder: Path) -> list[dict[str, Any]]:
    found = list(folder.glob("sweep/*/runs.jsonl"))
    return [json.loads(line) for line in found[0].read_text().splitlines()] if found else []


def finished(folder: Path) -> int:
    return sum(line["status"] == "done" for line in runs(folder))


def document(folder: Path) -> dict[str, Any]:
    return dict(json.loads(next(folder.glob("sweep/*/law.json")).read_text()))


def row(law: dict[str, Any], lines: list[dict[str, Any]], seed: int, seconds: float) -> str:
    (heldout,) = law["heldout"]
    fitted = [line["flops"] for line in lines if not line["heldout"] and line["status"] == "done"]
    measured, predicted, low, high = (heldout[key] for key in ("measured", "predicted", "low", "high"))
    reach = f"{heldout['flops'] / max(fitted):.1f}, {heldout['flops'] / statistics.median(fitted):.0f}"
    error, inside = 100 * (predicted / measured - 1), low <= measured <= high
    numbers = f"{predicted:.4f} | {low:.4f} to {high:.4f} | {measured:.4f} | {error:+.2f} % | {'yes' if inside else 'no'}"
    return f"| {seed} | {seconds / 60:.1f} | {len(lines)} | {max(fitted) / min(fitted):.0f} | {reach} | {numbers} |"


if __name__ == "__main__":
    main()
