"""A plugin file with three tiny stages, used by tests as a stranger's plugin would be."""

from __future__ import annotations

import json
import os
import subprocess
import time
from typing import Annotated

import feebcore as feeb
from feebcore.errors import Interrupted
from feebcore.files import write_json


class NumbersConfig(feeb.StageConfig):
    watchers: feeb.Observation[list[Annotated[feeb.Part, feeb.PartKey("callbacks")]]] = []
    count: int = 5
    pause: feeb.Execution[float] = 0.0
    crash: feeb.Execution[str] = ""


class SumConfig(feeb.StageConfig):
    power: int = 1
    pause: feeb.Execution[float] = 0.0


@feeb.hookimpl
def feeb_stages():
    yield feeb.StageSpec("numbers", NumbersConfig, build="toy_stages:numbers", makes=("numbers",), process="worker", summary="Writes numbers, slowly.")
    yield feeb.StageSpec("empty_model", feeb.StageConfig, build="toy_stages:nothing", makes=("model",), summary="Says that it makes a model.")
    needs = (feeb.Need("everything", kind="*", many=True),)
    yield feeb.StageSpec("sheet", feeb.StageConfig, build="toy_stages:sheet", needs=needs, makes=("page",), shows=True, summary="Shows what there is.")
    yield feeb.StageSpec("total", SumConfig, build="toy_stages:total", needs=(feeb.Need("numbers"),), summary="Adds them up.")


def numbers(section, inputs, out):
    """One number a step with a checkpoint after each, so that a kill loses at most one."""
    state = out.path / "state.json"
    values = json.loads(state.read_text()) if state.exists() else []
    out.log(f"pid {os.getpid()} starts at {len(values)}")
    print("hello from the worker", flush=True)
    while len(values) < section.count:
        if out.stop_requested:
            raise Interrupted(f"numbers stopped at {len(values)}; run the same command again to continue")
        if section.crash == "raise":
            raise ValueError("as asked")
        if section.crash == "orphan":  # as when the kernel kills a worker for memory: what it started is left
            child = subprocess.Popen(["sleep", "300"])
            (out.path / "child").write_text(str(child.pid))
            os.kill(os.getpid(), 9)
        if section.crash == "die":
            os.kill(os.getpid(), 9)
        values.append(len(values) + 1)
        write_json(state, values)
        out.progress(len(values), section.count, "numbers", "numbers")
        time.sleep(section.pause)
    write_json(out.path / "numbers.json", values)
    out.content("numbers.json")
    return {"count": len(values)}


def total(section, inputs, out):
    values = json.loads(inputs["numbers"].file("numbers.json").read_text())
    write_json(out.path / "total.json", sum(v**section.power for v in values))
    return {"total": sum(v**section.power for v in values)}


def nothing(section, inputs, out):
    return {}


def sheet(section, inputs, out):
    write_json(out.path / "sheet.json", {name: artifact.metrics for name, artifact in inputs.items()})
    return {"shown": len(inputs)}
