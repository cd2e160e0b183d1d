"""Planning and running stages without any orchestrator: fingerprints, reuse, locks, the worker process, the commit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from feebcore.artifacts import MANIFEST, Artifact, StageOutput, Workspace, commit
from feebcore.config import identity_of
from feebcore.errors import FeebError, Interrupted, RecipeError, did_you_mean
from feebcore.files import digest_of, explain, write_json
from feebcore.provenance import describe_environment, describe_plugins, plugin_sources
from feebcore.recipe import Recipe
from feebcore.registry import use_registry
from feebcore.run.processes import ALMOST_AT_ONCE, IN_THREADS, run_in_processes

Listener = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class PlanItem:
    """What will happen to one stage. status: 'reuse', 'continue' (unfinished folder), 'run', or 'run' without a
    fingerprint when an input is still to be built. differs: keys that set it apart from the nearest artifact."""

    stage: str
    status: str
    fingerprint: str = ""
    artifact: Artifact | None = None
    path: Path | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    differs: tuple[str, ...] = ()


def identity(recipe: Recipe, stage: str, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Everything that changes this stage's result, as plain JSON."""
    entry = recipe.stages[stage]
    found: dict[str, Any] = {"stage": entry.spec.full_name, "revision": entry.spec.revision, "section": identity_of(entry.section)}
    found["inputs"] = {name: artifact.digest for name, artifact in sorted(inputs.items())}
    if sources := plugin_sources(recipe, stage):
        found["sources"] = sources
    return found


def stages_for(recipe: Recipe, stages: Iterable[str] | None = None) -> list[str]:
    """`stages` (default all) and whatever they need, in running order. Raises RecipeError for one the recipe lacks."""
    wanted: set[str] = set()
    for stage in stages or recipe.stages:
        if stage not in recipe.stages:
            raise RecipeError(f"{recipe.path}: the recipe runs no stage {stage!r}; {did_you_mean(stage, recipe.stages)}")
        wanted.update(recipe.upstream(stage))
    return [s for s in recipe.stages if s in wanted]


def plan(recipe: Recipe, workspace: Workspace, stages: Iterable[str] | None = None) -> list[PlanItem]:
    """What running `stages` (default all) and whatever they need would do, in running order. Writes nothing."""
    items: dict[str, PlanItem] = {}
    for stage in stages_for(recipe, stages):
        items[stage] = plan_stage(recipe, stage, workspace, {s: i.artifact for s, i in items.items()})
    return list(items.values())


def plan_stage(recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact | None]) -> PlanItem:
    """The plan of one stage, given the artifacts of the stages before it (None: not built yet)."""
    inputs: dict[str, Artifact] = {}
    for name, provider in recipe.needs(stage).items():
        artifact = built.get(provider)
        if artifact is None:
            return PlanItem(stage, "run", differs=(f"input {provider} is not built yet",))
        inputs[name] = artifact
    wanted = identity(recipe, stage, inputs)
    fingerprint = digest_of(wanted)[:12]
    artifact = workspace.find(stage, fingerprint)
    if artifact is not None:
        return PlanItem(stage, "reuse", fingerprint, artifact, artifact.path, wanted)
    folders = workspace.folders(stage, fingerprint)
    if folders:
        return PlanItem(stage, "continue", fingerprint, None, folders[0], wanted)
    return PlanItem(
        stage,
        "run",
        fingerprint,
        None,
        workspace.root / stage / f"{recipe.name}-{fingerprint}",
        wanted,
        _nearest_difference(workspace, stage, recipe.name, wanted),
    )


def _nearest_difference(workspace: Workspace, stage: str, label: str, wanted: dict[str, Any]) -> tuple[str, ...]:
    """The dotted keys in which `wanted` differs from the most similar finished artifact of the same stage."""
    best: tuple[int, bool, tuple[str, ...]] | None = None
    for _, artifact in workspace.all(damaged=lambda folder, error: None):
        if artifact is None or artifact.stage != stage or "section" not in artifact.manifest["identity"]:
            continue
        keys = _differences(artifact.manifest["identity"], wanted)
        rank = (len(keys), artifact.label != label, keys)
        best = rank if best is None or rank[:2] < best[:2] else best
    return best[2] if best else ()


def _differences(old: Any, new: Any, prefix: str = "") -> tuple[str, ...]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return tuple(d for k in keys for d in _differences(old.get(k), new.get(k), f"{prefix}.{k}" if prefix else k))
    if old == new:
        return ()
    short = lambda v: "default" if v is None else (v[:12] if isinstance(v, str) else json.dumps(v))  # noqa: E731
    return (f"{prefix.removeprefix('section.')}: {short(old)} -> {short(new)}",)


def build(
    recipe: Recipe,
    stage: str,
    workspace: Workspace,
    built: Mapping[str, Artifact],
    listener: Listener | None = None,
    in_process: bool = False,
    before: Callable[[Path], None] | None = None,
) -> Artifact:
    """Make one stage's artifact, or return the finished one. built: artifacts of the stages it needs.

    Runs in this process when the stage is 'inline' or `in_process`, else in processes of its own whose events are passed
    on. before: told the folder once it is this process's to fill and the request is in it; not called for a finished one.
    Raises StageFailed, Interrupted or what the stage raised.
    """
    entry = recipe.stages[stage]
    inputs = {name: built[provider] for name, provider in recipe.needs(stage).items()}
    wanted = identity(recipe, stage, inputs)
    fingerprint = digest_of(wanted)[:12]
    tell = listener or (lambda row: None)
    waiting = lambda text: tell({"kind": "log", "time": time.time(), "text": f"{stage}: {text}"})  # noqa: E731
    with workspace.building(stage, recipe.name, fingerprint, waiting) as place:
        if isinstance(place, Artifact):
            return place
        started = time.time()
        environment = describe_environment()
        plugins = describe_plugins(recipe, stage)
        try:
            write_json(place / "recipe.json", recipe.resolved())
            write_json(place / "environment.json", environment)
            write_json(place / "request.json", {"stage": stage, "fingerprint": fingerprint, "inputs": {n: str(a.path) for n, a in inputs.items()}})
            (place / "result.json").unlink(missing_ok=True)
            out = StageOutput(place, None if entry.spec.process == "worker" and not in_process else listener)
        except OSError as error:
            raise explain(error, place) from error
        try:
            out.event("begin", stage=stage, pid=os.getpid())
            if before:
                before(place)
            if entry.spec.process == "worker" and not in_process:
                metrics = run_in_processes(place, entry.section, out, tell)
            else:
                metrics = run_stage(recipe, stage, inputs, out)
            artifact = commit(
                out,
                stage=stage,
                label=place.name.rpartition("-")[0],
                fingerprint=fingerprint,
                identity=wanted,
                metrics=metrics,
                section=entry.section.model_dump(mode="json"),
                inputs=inputs,
                plugins=plugins,
                environment=environment,
                started=started,
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
    with use_registry(recipe.registry), stop_on_signals(out):
        metrics = entry.spec.load()(entry.section, inputs, out)
    return json.loads(json.dumps(metrics or {}))


@contextlib.contextmanager
def stop_on_signals(out: StageOutput) -> Iterator[None]:
    """SIGINT and SIGTERM ask the stage to stop; a second one, or 9 s, ends the process.

    One within ALMOST_AT_ONCE is the same request: a cluster's scheduler signals each process of a job, and those that
    started others pass it on.
    """
    if threading.current_thread() is not threading.main_thread():
        IN_THREADS.add(out)
        try:
            yield
        finally:
            IN_THREADS.discard(out)
        return

    first: float | None = None

    def asked(number: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
        elif time.monotonic() - first < ALMOST_AT_ONCE:
            return
        else:
            os._exit(128 + number)
        out.stop_requested = True
        timer = threading.Timer(9.0, lambda: os._exit(128 + number))
        timer.daemon = True
        timer.start()
        timers.append(timer)

    timers: list[threading.Timer] = []
    old = {n: signal.signal(n, asked) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        for n, handler in old.items():
            signal.signal(n, handler)


def run_all(
    recipe: Recipe, workspace: Workspace, stages: Iterable[str] | None = None, listener: Listener | None = None, in_process: bool = True
) -> dict[str, Artifact]:
    """Build `stages` and what they need, in order, with no orchestrator."""
    built: dict[str, Artifact] = {}
    for item in plan(recipe, workspace, stages):
        if listener:
            listener({"kind": "stage", "time": time.time(), "stage": item.stage})
        built[item.stage] = build(recipe, item.stage, workspace, built, listener, in_process)
    return built


def finished(folder: Path) -> bool:
    return (folder / MANIFEST).exists()


__all__ = ["FeebError", "PlanItem", "build", "identity", "plan", "plan_stage", "run_all", "stages_for", "stop_on_signals"]
