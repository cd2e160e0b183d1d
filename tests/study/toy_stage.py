"""A single-file plugin with one stage that loads no torch: counts with a checkpoint a step, and fails in every way a run can."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import feebcore as feeb
from feebcore.errors import Diverged, Interrupted


class CountConfig(feeb.StageConfig):
    number: int = 0
    steps: int = 3
    diverges: bool = False
    step_seconds: feeb.Execution[float] = 0.0
    device: feeb.Execution[str] = "cpu"
    fails: feeb.Execution[int] = 0  # how often it raises before it works
    dies: feeb.Execution[int] = 0  # how often it is killed


def count(section, inputs, out):
    state = out.path / "state.json"
    done, text = json.loads(state.read_text()) if state.exists() else (0, str(section.number))
    with open(out.path / "attempts", "a") as stream:
        stream.write(f"{os.getpid()}\n")
    attempts = len((out.path / "attempts").read_text().splitlines())
    if attempts <= section.dies:
        os.kill(os.getpid(), signal.SIGKILL)
    if attempts <= section.fails:
        raise RuntimeError(f"number {section.number} is not liked")
    if section.diverges:
        raise Diverged("step 1: loss nan")
    for step in range(done, section.steps):
        time.sleep(section.step_seconds)
        text = hashlib.sha256(f"{text}{step}".encode()).hexdigest()
        state.with_suffix(".tmp").write_text(json.dumps((step + 1, text)))
        state.with_suffix(".tmp").replace(state)
        out.progress(step + 1, section.steps, "steps")
        if out.stop_requested:
            raise Interrupted(f"saved at step {step + 1}")
    (out.path / "text.txt").write_text(text)
    out.content("text.txt")
    return {"text": text, "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS"), "device": os.environ.get("CUDA_VISIBLE_DEVICES")}


@feeb.hookimpl
def feeb_stages():
    yield feeb.StageSpec("count", CountConfig, build=f"{Path(__file__).stem}:count", process="worker", summary="Counts.")
