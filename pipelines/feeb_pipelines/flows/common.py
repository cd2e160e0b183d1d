"""What every flow does: build stages in order as tasks of one flow run, and make the run readable in Prefect's pages.

Prefect is a view here: fingerprints, reuse, locks and the commit are feebcore's. A stage that needs work becomes a task
that does it; a stage that is finished becomes a task that says so. One flow run has a fixed cost of about a second, a
task of some hundredths, therefore no subflows.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_run_logger, runtime, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, State

from feeb_pipelines.runs import hold, settle
from feeb_pipelines.summary import flat_metrics, headline, highlights, number
from feeb_pipelines.task_runners import open_task_runner
from feebcore.artifacts import Artifact, Workspace, read_artifact
from feebcore.claims.conclude import command_of, conclude
from feebcore.data.task_runner import offering
from feebcore.errors import FeebError, Interrupted, StageFailed
from feebcore.recipe import Recipe, load_study
from feebcore.run.build import build
from feebcore.run.plan import PlanItem, plan_stage, stages_for
from feebcore.run.processes import SAME_REQUEST, stop_running

OPTIONS: dict[str, Any] = {"persist_result": True, "result_serializer": "json", "validate_parameters": True}
"""Options of every @flow here."""

Listener = Callable[[dict[str, Any]], None]
_watchers: list[Listener] = []


@contextlib.contextmanager
def watching(listener: Listener) -> Iterator[None]:
    """Pass every event of flows that this process runs to `listener` as well: the command line's progress display."""
    _watchers.append(listener)
    try:
        yield
    finally:
        _watchers.remove(listener)


def run_stages(stages: Sequence[str] | None, recipe: str, overrides: Sequence[str] | None, workspace: str | None, jobs: int = 1) -> Any:
    """Inside a flow run: build `stages` (None: all) of every member of the recipe, and what they need.

    jobs: members of a study at work side by side. A member that fails does not end the others; the flow fails at the end, unless
    all that failed diverged and the recipe has claims, to which that is a result.

    Returns {label: {stage: {path, fingerprint, status, seconds, metrics}}}, with "claims" beside the stages of the first member
    where the recipe has some, or a Cancelled state after SIGINT or SIGTERM.
    """
    if jobs < 1:
        raise FeebError(f"jobs: {jobs}; at least one member has to be at work")
    began = time.time()
    members = load_study(recipe, list(overrides or ()))
    space = Workspace(workspace)
    flow_run_id = UUID(str(runtime.flow_run.id))
    with hold(space.root, flow_run_id):
        for name in settle(space.root):
            get_run_logger().warning("run %s was left unfinished by a kill; it is marked Crashed now", name)
        title = f"{members[0].data.get('name') or members[0].path.stem}-{'-'.join(stages or ['pipeline'])}"
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run_id, name=title, tags=["feeb", *(stages or ["pipeline"]), *sorted({m.name for m in members})[:MOST_TAGS]])
        outcome = _run_members(members, stages, space, jobs)
        if isinstance(outcome, State):
            return outcome
        results, failures = outcome
        _describe_run(title, results)
        page = conclude(members, results, failures, space, command_of(recipe, overrides or ()))
        if page is not None:
            status = "built" if page.manifest["finished"] > began else "reused"
            result = {"path": str(page.path), "fingerprint": page.fingerprint, "status": status, "seconds": 0.0, "metrics": page.metrics}
            results[members[0].name]["claims"] = result
            create_markdown_artifact(page.file("page.md").read_text(), key=slug(f"{title}-claims"), description="What the study's runs say of its claims")
        return results


MOST_TAGS = 40
"""Members of a study that are named in its tags; Prefect's pages show them all in a row."""


def _run_members(
    members: Sequence[Recipe], stages: Sequence[str] | None, space: Workspace, jobs: int
) -> tuple[dict[str, dict[str, Any]], dict[str, FeebError]] | State:
    """Results and failures by member, or a Cancelled state. The first member's inputs are built before others begin."""
    results: dict[str, dict[str, Any]] = {member.name: {} for member in members}
    failures: dict[str, FeebError] = {}
    stopped: list[State] = []
    asked = threading.Event()

    def one(member: Recipe, only: Sequence[str] | None) -> None:
        if asked.is_set() or stopped:
            return
        try:
            outcome = _run_member(member, member.name, only, space, results[member.name], asked)
        except Interrupted:
            raise
        except Exception as error:  # a stage inside this process may raise anything
            if len(members) == 1:
                raise
            failures[member.name] = error if isinstance(error, FeebError) else StageFailed(f"{type(error).__name__}: {error}")
            get_run_logger().warning("%s failed, the others go on: %s", member.name, error, exc_info=not isinstance(error, FeebError))
        else:
            failures.pop(member.name, None)  # its inputs may have been had at the second try
            if isinstance(outcome, State):
                stopped.append(outcome)

    if jobs == 1 or len(members) == 1:
        for member in members:
            one(member, stages)
        return stopped[0] if stopped else (results, failures)
    first = members[0]
    inputs = [stage for stage in stages_for(first, stages) if first.stages[stage].spec.process == "inline"]
    shared = list(itertools.takewhile(lambda stage: stage in inputs, stages_for(first, stages)))
    if shared:
        one(first, shared)
    with _stopping(asked), ThreadPoolExecutor(jobs, thread_name_prefix="member") as pool:
        futures = [pool.submit(contextvars.copy_context().run, one, member, stages) for member in members]
        while wait(futures, timeout=0.2).not_done:
            if asked.is_set():
                stop_running()  # again and again: a member may just have been about to begin
    for future in futures:
        future.result()
    if asked.is_set() and not stopped:
        stopped.append(Cancelled(message="stopped; what is finished is kept, run the same command again to continue"))
    return stopped[0] if stopped else (results, failures)


@contextlib.contextmanager
def _stopping(asked: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM ask the members that are at work to save and end, and let no other begin; a second one ends everything at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def stop(number: int, frame: Any) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            asked.set()
        elif time.monotonic() - first >= SAME_REQUEST:
            stop_running(kill=True)
            os._exit(128 + number)

    old = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _run_member(member: Recipe, label: str, stages: Sequence[str] | None, space: Workspace, results: dict[str, Any], asked: threading.Event) -> State | None:
    built: dict[str, Artifact] = {}
    order = stages_for(member, stages)
    for index, stage in enumerate(order):
        if asked.is_set():
            return Cancelled(message="stopped; what is finished is kept, run the same command again to continue")
        item = plan_stage(member, stage, space, built)
        watcher = _Watcher(label, stage, item.status, index, len(order))
        state = _task_for(member, stage, label, item, space, built, watcher)(stage=stage, label=label, fingerprint=item.fingerprint, return_state=True)
        if state.is_cancelled():
            return Cancelled(message=state.message)
        result = state.result()  # raises what the stage raised
        artifact = read_artifact(Path(result["path"]))
        assert artifact is not None
        built[stage], results[stage] = artifact, result
    return None


def _task_for(member: Recipe, stage: str, label: str, item: PlanItem, space: Workspace, built: dict[str, Artifact], watcher: _Watcher) -> Any:
    """The task of one stage. Recipe and inputs come by closure: Prefect would walk through them as parameters."""
    task_runners = functools.partial(open_task_runner, contextvars.copy_context())  # of the flow: here no task has begun

    @task(
        name=stage,
        task_run_name="{label}-{stage}",
        tags=[stage, label, item.fingerprint, item.status],
        cache_policy=NO_CACHE,
        persist_result=True,
        result_serializer="json",
        description=member.stages[stage].spec.summary,
    )
    def build_stage(stage: str, label: str, fingerprint: str) -> Any:
        started = time.monotonic()
        watcher.begin()
        if item.artifact is not None:
            artifact = item.artifact
        else:
            try:
                with offering(task_runners):
                    artifact = build(member, stage, space, built, watcher)
            except Interrupted as stopped:
                watcher.logger.warning("%s", stopped)
                return Cancelled(message=str(stopped))
        result = {
            "path": str(artifact.path),
            "fingerprint": artifact.fingerprint,
            "status": "reused" if item.artifact is not None else "built",
            "seconds": round(time.monotonic() - started, 3),
            "metrics": artifact.metrics,
        }
        watcher.end(artifact, result)
        return result

    return build_stage


class _Watcher:
    """Turns a stage's events into log lines, a progress artifact and what the command line shows."""

    def __init__(self, label: str, stage: str, status: str, index: int, total: int) -> None:
        self.label, self.stage, self.status, self.index, self.total = label, stage, status, index, total
        self._progress: tuple[UUID, float] | None = None  # one bar a stage, whatever it counts: a bar each would bury the timeline
        self._started = time.monotonic()

    def begin(self) -> None:
        self.logger = get_run_logger()
        self._context = contextvars.copy_context()  # says which run it is to a thread that follows a worker
        self._started = time.monotonic()
        _tell({"kind": "stage", "label": self.label, "stage": self.stage, "status": self.status, "index": self.index, "total": self.total})

    def __call__(self, row: dict[str, Any]) -> None:
        """An event of the stage; called from the stage's thread, or from the one that follows a worker's file."""
        if row["kind"] == "log":
            self.logger.info("%s", row["text"])
        elif row["kind"] == "progress" and row["total"]:
            self._update(row)
        _tell(row)

    def _update(self, row: dict[str, Any]) -> None:
        """At most one update in five seconds, from the third second on: each costs some hundredths of a second."""
        now, name = time.monotonic(), str(row.get("name") or "")
        last = self._progress
        if now - self._started < 3.0 or (last and now - last[1] < 5.0 and row["done"] < row["total"]):
            return
        percent = min(100.0, 100.0 * row["done"] / row["total"])
        text = f"{self.stage} {name}: {number(row['done'])} of {number(row['total'])} {row.get('unit', '')}".strip()
        try:
            if last is None:
                created = self._context.run(create_progress_artifact, percent, key=slug(f"{self.label}-{self.stage}-progress"), description=text)
                assert isinstance(created, UUID)
                self._progress = (created, now)
            else:
                update_progress_artifact(last[0], percent, description=text)
                self._progress = (last[0], now)
        except Exception as error:  # a page's progress bar must not end a training
            self._progress = (last[0] if last else UUID(int=0), now + 60)
            self.logger.warning("progress not shown in Prefect: %s", error)

    def end(self, artifact: Artifact, result: dict[str, Any]) -> None:
        if self._progress:
            with contextlib.suppress(Exception):
                update_progress_artifact(self._progress[0], 100.0)
        if result["status"] == "built":
            self.logger.info("%s is built, in %.1f s: %s", self.stage, result["seconds"], headline(self.stage, artifact.metrics))
            _describe_stage(self.label, self.stage, artifact, result)
        else:
            self.logger.info("reused %s", artifact.path)
        _tell({"kind": "done", "label": self.label, "stage": self.stage, **result})


def _tell(row: dict[str, Any]) -> None:
    for listener in list(_watchers):
        listener(row)


def _describe_stage(label: str, stage: str, artifact: Artifact, result: dict[str, Any]) -> None:
    """What the stage made, for the Artifacts tab of its task run."""
    lines = [f"# {label}: {stage}", "", f"`{artifact.path}`", ""]
    lines += [f"- **{name}**: {value}" for name, value in highlights(stage, artifact.metrics)]
    lines += [f"- **seconds**: {result['seconds']:.1f}", f"- **fingerprint**: `{artifact.fingerprint}`", f"- **created**: {artifact.manifest['created']}"]
    lines += ["", "## Inputs", ""] + [f"- {name}: `{entry['path']}`" for name, entry in artifact.manifest["inputs"].items()]
    lines += ["", "## Plugins", ""] + [f"- {row['kind']}: {row['part']} {row['version']}" for row in artifact.manifest["plugins"]]
    key = slug(f"{label}-{stage}")
    create_markdown_artifact("\n".join(lines), key=f"{key}-summary", description=f"What {stage} made")
    if rows := [{"metric": name, "value": number(value)} for name, value in flat_metrics(artifact.metrics)]:
        create_table_artifact(rows, key=f"{key}-metrics", description=f"Metrics of {stage}")
    if report := artifact.metrics.get("report"):
        create_link_artifact(
            (artifact.path / str(report)).as_uri(), link_text=f"Report of {label}", key=f"{key}-link", description="The report, a file on this machine"
        )


def _describe_run(title: str, results: dict[str, dict[str, Any]]) -> None:
    rows = [
        {"run": label, "stage": stage, "status": r["status"], "seconds": f"{r['seconds']:.1f}", "metrics": headline(stage, r["metrics"]), "path": r["path"]}
        for label, stages in results.items()
        for stage, r in stages.items()
    ]
    create_table_artifact(rows, key=slug(f"{title}-stages"), description="Every stage of this run")


def slug(text: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
