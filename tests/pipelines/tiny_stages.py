"""A single-file plugin with four small stages: numbers -> total -> slow (a worker with checkpoints) -> page."""

from __future__ import annotations

import json
import time
from pathlib import Path

import feebcore as feeb
from feebcore.errors import Interrupted


class NumbersConfig(feeb.StageConfig):
    count: int = 10
    seconds: float = 0.0


class TotalConfig(feeb.StageConfig):
    scale: float = 1.0
    fail: bool = False


class SlowConfig(feeb.StageConfig):
    steps: int = 5
    step_seconds: feeb.Execution[float] = 0.02
    deaf: feeb.Execution[bool] = False


class PageConfig(feeb.StageConfig):
    title: str = "numbers"


def make_numbers(section, inputs, out):
    time.sleep(section.seconds)
    (out.path / "numbers.json").write_text(json.dumps(list(range(section.count))))
    out.log("numbers are made")
    return {"count": section.count}


def sum_numbers(section, inputs, out):
    if section.fail:
        raise feeb.DataError("these numbers do not add up")
    numbers = json.loads(inputs["numbers"].file("numbers.json").read_text())
    (out.path / "total.json").write_text(json.dumps(section.scale * sum(numbers)))
    return {"total": section.scale * sum(numbers)}


def slow(section, inputs, out):
    """Counts to `steps` with a checkpoint at each; continues from the last."""
    import sys

    assert "feebcore.run.worker" in sys.modules or "__main__" in sys.modules
    state = out.path / "state.json"
    done = json.loads(state.read_text()) if state.exists() else 0
    out.log(f"starts at step {done}")
    for step in range(done, section.steps):
        time.sleep(section.step_seconds)
        temporary = state.with_suffix(".tmp")
        temporary.write_text(json.dumps(step + 1))
        temporary.replace(state)
        out.progress(step + 1, section.steps, "steps", loss=1 / (step + 1))
        if out.stop_requested and not section.deaf:
            raise Interrupted(f"saved at step {step + 1}")
    return {"steps": section.steps, "started_at": done}


def page(section, inputs, out):
    (out.path / "report.html").write_text(f"<h1>{section.title}</h1>")
    return {"report": "report.html", "figures": 0}


@feeb.hookimpl
def feeb_stages():
    name = Path(__file__).stem
    yield feeb.StageSpec("make_numbers", NumbersConfig, build=f"{name}:make_numbers", makes=("numbers",), summary="Makes numbers.")
    yield feeb.StageSpec("sum_numbers", TotalConfig, build=f"{name}:sum_numbers", makes=("total",), needs=(feeb.Need("numbers"),), summary="Adds them up.")
    yield feeb.StageSpec(
        "slow", SlowConfig, build=f"{name}:slow", makes=("slow",), needs=(feeb.Need("total"),), process="worker", summary="Counts slowly, in a worker."
    )
    yield feeb.StageSpec("page", PageConfig, build=f"{name}:page", needs=(feeb.Need("slow"),), summary="Writes a page.")
