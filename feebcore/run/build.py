"""Building stages without any orchestrator: the lock, the stage in this process or in processes of its own, the commit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from feebcore.artifacts import Artifact, StageOutput, Workspace, check_kinds, commit
from feebcore.errors import Interrupted
from feebcore.files import digest_of, explain, write_json
from feebcore.provenance import describe_environment, describe_plugins
from feebcore.recipe import Recipe
from feebcore.registry import use_registry
from feebcore.run.contracts import require_checked, unchecked_parts
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import identity, plan, require_unchanged, revalidated
from feebcore.run.processes import AT_WORK, SAME_REQUEST, Publish, run_in_processes


def build(
    recipe: Recipe,
    stage: str,
    workspace: Workspace,
    built: Mapping[str, Artifact],
    on_progress: Publish | None = None,
    in_process: bool = False,
    before: Callable[[Path], None] | None = None,
) -> Artifact:
    """Make one stage's artifact, or return the finished one. built: artifacts of the stages it needs.

    Runs in this process when the stage is 'inline' or `in_process`, else in processes of its own whose events are passed
    on. on_progress: called with every event. before: called with the folder once it is this process's to fill and the request is
    in it; not called for a finished one.
    Raises StageFailed, Interrupted or what the stage raised.
    """
    entry = recipe.stages[stage]
    inputs = finished_inputs(recipe, stage, workspace, built)
    stage_identity = identity(recipe, stage, inputs)
    fingerprint = digest_of(stage_identity)[:12]
    publish = on_progress or (lambda row: None)
    waiting = lambda text: publish({"kind": "log", "time": time.time(), "text": f"{stage}: {text}"})  # noqa: E731
    with workspace.building(stage, recipe.name, fingerprint, waiting) as place:
        if isinstance(place, Artifact):
            return place
        started = time.time()
        environment = describe_environment()
        plugins = describe_plugins(recipe, stage)
        paths = {name: str(input_artifact.path) for name, input_artifact in inputs.items()}
        require_unchanged(revalidated(recipe, stage), stage, inputs, stage_identity)
        try:
            write_json(place / "recipe.json", recipe.resolved())
            write_json(place / "environment.json", environment)
            request = {"stage": stage, "fingerprint": fingerprint, "inputs": paths, "identity": stage_identity}
            write_json(place / "request.json", request | {"recipe": str(recipe.path.absolute()), "overrides": recipe.overrides, "changes": recipe.changes})
            (place / "result.json").unlink(missing_ok=True)
            out = StageOutput(place, None if entry.spec.process == "worker" and not in_process else on_progress)
        except OSError as error:
            raise explain(error, place) from error
        try:
            out.event("begin", stage=stage, pid=os.getpid())
            if before:
                before(place)
            if entry.spec.process == "worker" and not in_process:
                metrics = run_in_processes(place, entry.section, out, publish)
            else:
                metrics = run_stage(recipe, stage, inputs, out)
            check_kinds(place, entry.spec.makes, f"stage {stage}")
            artifact = commit(
                out,
                stage=stage,
                name=place.name.rpartition("-")[0],
                fingerprint=fingerprint,
                identity=stage_identity,
                metrics=metrics,
                section=entry.section.model_dump(mode="json"),
                inputs=inputs,
                plugins=plugins,
                environment=environment,
                started=started,
                makes=entry.spec.makes,
                unchecked=unchecked_parts(recipe, stage, workspace, inputs),
            )
        except OSError as error:
            raise explain(error, place) from error
        finally:
            out.close()
        if out.stop_requested:  # it ended before it saw the request: what it made is good, what follows is not begun
            raise Interrupted(f"stopped after stage {stage}, which is finished; run the same command again to continue")
        return artifact


def run_stage(recipe: Recipe, stage: str, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Run the stage's function in this process; its metrics as plain JSON values."""
    entry = recipe.stages[stage]
    AT_WORK.add(out)
    try:
        with use_registry(recipe.registry), stop_on_signals(out):
            metrics = entry.spec.load()(entry.section, inputs, out)
    finally:
        AT_WORK.discard(out)
    return json.loads(json.dumps(metrics or {}))


@contextlib.contextmanager
def stop_on_signals(out: StageOutput) -> Iterator[None]:
    """SIGINT and SIGTERM ask the stage to stop; a second one, or 9 s, ends the process.

    One within SAME_REQUEST is the same request: a cluster's scheduler signals each process of a job, and those that
    started others pass it on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal reaches a thread; `stop_running` asks
        return

    first: float | None = None

    def on_signal(number: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first < SAME_REQUEST:
            return
        else:
            os._exit(128 + number)
        out.stop_requested = True
        timer = threading.Timer(9.0, lambda: os._exit(128 + number))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    timers: list[threading.Timer] = []
    old = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for n, handler in old.items():
            signal.signal(n, handler)


def run_all(
    recipe: Recipe,
    workspace: Workspace,
    stages: Iterable[str] | None = None,
    on_progress: Publish | None = None,
    in_process: bool = True,
    unchecked: bool = False,
) -> dict[str, Artifact]:
    """Build `stages` and what they need, in order, with no orchestrator. unchecked: also with parts of plugins that fail their contract."""
    built: dict[str, Artifact] = {}
    stages = None if stages is None else list(stages)
    require_checked([recipe], stages, workspace, on_progress, unchecked)
    for item in plan(recipe, workspace, stages):
        if on_progress:
            on_progress({"kind": "stage", "time": time.time(), "stage": item.stage})
        built[item.stage] = build(recipe, item.stage, workspace, built, on_progress, in_process)
    return built
