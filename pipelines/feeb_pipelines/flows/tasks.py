"""What every flow does: build stages as tasks of one flow run, and make the run readable in Prefect's pages.

Prefect is a view here: fingerprints, reuse, locks and the commit are feebcore's, and so are studies with their ledger. A stage of a
run becomes a task, one that is finished a task that says so. One flow run has a fixed cost of about a second, a task
of some hundredths, therefore no subflows.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from prefect.states import Cancelled

from feeb_pipelines.runs import lock_run, reconcile_runs
from feeb_pipelines.summary import flat_metrics, headline, highlights, number
from feeb_pipelines.task_runners import open_task_runner
from feebcore.artifacts import Artifact, Workspace
from feebcore.claims.conclude import command_of, conclude
from feebcore.data.task_runner import offering
from feebcore.errors import FeebError, Interrupted
from feebcore.recipe import load_study
from feebcore.run.plan import PlanItem
from feebcore.study.executors import OwnProcesses, WarmWorkers, executing
from feebcore.study.run import stage_result
from feebcore.study.variants import run_variants

ProgressFn = Callable[[dict[str, Any]], None]
_subscribers: list[ProgressFn] = []


@contextlib.contextmanager
def subscribed(subscriber: ProgressFn) -> Iterator[None]:
    """Pass every event of flows that this process runs to `subscriber` as well: the command line's progress display."""
    _subscribers.append(subscriber)
    try:
        yield
    finally:
        _subscribers.remove(subscriber)


def _publish(row: dict[str, Any]) -> None:
    for subscriber in list(_subscribers):
        subscriber(row)


MOST_TAGS = 40
"""Runs of a study that are named in its tags; Prefect's pages show them all in a row."""


@contextlib.contextmanager
def _flow_run(space: Workspace, title: str, tags: Sequence[str], jobs: int) -> Iterator[None]:
    """Inside a flow run: it has this title and these tags, this process's lock, and warm workers for the runs of studies."""
    if jobs < 1:
        raise FeebError(f"jobs: {jobs}; at least one run must be in progress")
    flow_run_id = UUID(str(runtime.flow_run.id))
    with lock_run(space.root, flow_run_id):
        for name in reconcile_runs(space.root):
            get_run_logger().warning("run %s was left unfinished by a kill; it is marked Crashed now", name)
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run_id, name=title, tags=["feeb", *tags[: MOST_TAGS + 1]])
        with WarmWorkers(jobs) as workers, executing(workers, _as_task):
            yield


def run_stages(
    stages: Sequence[str] | None, recipe: str, overrides: Sequence[str] | None, workspace: str | None, jobs: int = 1, unchecked: bool = False
) -> Any:
    """Inside a flow run: build `stages` (None: all) of every run of the recipe, and what they need.

    jobs: number of parallel runs of a study or sweep. A run that fails does not end the others; the flow fails at the end, unless
    all that failed diverged and the recipe has claims, to which that is a result.

    Returns {run: {stage: {path, fingerprint, status, seconds, metrics}}}, with "claims" beside the stages of the first run
    where the recipe has some, or a Cancelled state after SIGINT or SIGTERM.
    """
    began = time.time()
    recipes = load_study(recipe, list(overrides or ()))
    space = Workspace(workspace)
    first = recipes[0]
    title = f"{first.data.get('name') or first.path.stem}-{'-'.join(stages or ['pipeline'])}"
    with _flow_run(space, title, [*(stages or ["pipeline"]), *sorted({r.name for r in recipes})], jobs):
        try:
            results, failures = run_variants(recipes, stages, space, _publish, OwnProcesses(), unchecked)
        except Interrupted as stopped:
            return Cancelled(message=str(stopped))
        _describe_run(title, results)
        page = conclude(recipes, results, failures, space, command_of(recipe, overrides or ()))
        if page is not None:
            results[first.name]["claims"] = stage_result(page, page.manifest["finished"] <= began, 0.0)
            create_markdown_artifact(page.file("page.md").read_text(), key=slug(f"{title}-claims"), description="What the study's runs say of its claims")
        return results


def run_comparison(
    recipes: Sequence[str], settings: Mapping[str, Any], overrides: Sequence[str], quick: bool, workspace: str | None, jobs: int, unchecked: bool = False
) -> Any:
    """Inside a flow run: the comparison of the recipes. Returns {"path", "fingerprint", "status", ...} of its artifact, or a Cancelled state."""
    from feebcore.compare.plan import Settings, load_candidates
    from feebcore.compare.run import compare

    began = time.time()
    chosen, variants, command = load_candidates(recipes, Settings(**settings), overrides, quick)
    space = Workspace(workspace)
    title = f"compare-{chosen.name or '-vs-'.join(r.name for r in variants[:4])}"
    with _flow_run(space, title, ["compare", *sorted({r.name for r in variants})], jobs):
        try:
            artifact = compare(variants, chosen, space, _publish, command, unchecked)
        except Interrupted as stopped:
            return Cancelled(message=str(stopped))
        create_markdown_artifact(artifact.file("page.md").read_text(), key=slug(title), description="The verdict of the comparison")
        return stage_result(artifact, artifact.manifest["finished"] <= began, round(time.time() - began, 3))


def _as_task(run: str, stage: str, item: PlanItem, on_progress: ProgressFn, build: Callable[[ProgressFn], Artifact]) -> Artifact:
    """The stage of a run as a task of this flow run. What it needs comes by closure: Prefect would walk through it as parameters."""
    task_runners = functools.partial(open_task_runner, contextvars.copy_context())  # of the flow: here no task has begun
    watcher = _Watcher(run, stage, on_progress)
    made: list[Artifact] = []

    @task(
        name=stage,
        task_run_name="{run}-{stage}",
        tags=[stage, run, item.fingerprint, item.status],
        cache_policy=NO_CACHE,
        persist_result=True,
        result_serializer="json",
    )
    def build_stage(stage: str, run: str, fingerprint: str) -> Any:
        began = time.monotonic()
        watcher.begin()
        try:
            with offering(task_runners):
                artifact = build(watcher)
        except Interrupted as stopped:
            watcher.logger.warning("%s", stopped)
            return Cancelled(message=str(stopped))
        made.append(artifact)
        result = stage_result(artifact, item.artifact is not None, time.monotonic() - began)
        watcher.end(artifact, result)
        return result

    state = build_stage(stage=stage, run=run, fingerprint=item.fingerprint, return_state=True)
    if state.is_cancelled():
        raise Interrupted(str(state.message))
    state.result()  # raises what the stage raised
    return made[0]


class _Watcher:
    """Turns a stage's events into log lines, a progress artifact and passes them on."""

    def __init__(self, run: str, stage: str, on_progress: ProgressFn) -> None:
        self.run, self.stage, self.on_progress = run, stage, on_progress
        self._progress: tuple[UUID, float] | None = None  # one bar a stage, whatever it counts: a bar each would bury the timeline
        self._started = time.monotonic()

    def begin(self) -> None:
        self.logger = get_run_logger()
        self._context = contextvars.copy_context()  # says which run it is to a thread that follows a worker
        self._started = time.monotonic()

    def __call__(self, row: dict[str, Any]) -> None:
        """An event of the stage; called from the stage's thread, or from the one that follows a worker's file."""
        if row["kind"] == "log":
            self.logger.info("%s", row["text"])
        elif row["kind"] == "progress" and row["total"]:
            self._update(row)
        self.on_progress(row)

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
                created = self._context.run(create_progress_artifact, percent, key=slug(f"{self.run}-{self.stage}-progress"), description=text)
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
            self.logger.info("%s is built, in %.1f s: %s", self.stage, result["seconds"], headline(artifact.metrics))
            _describe_stage(self.run, self.stage, artifact, result)
        else:
            self.logger.info("reused %s", artifact.path)


def _describe_stage(run: str, stage: str, artifact: Artifact, result: dict[str, Any]) -> None:
    """What the stage made, for the Artifacts tab of its task run."""
    lines = [f"# {run}: {stage}", "", f"`{artifact.path}`", ""]
    lines += [f"- **{name}**: {value}" for name, value in highlights(artifact.metrics)]
    lines += [f"- **seconds**: {result['seconds']:.1f}", f"- **fingerprint**: `{artifact.fingerprint}`", f"- **created**: {artifact.manifest['created']}"]
    lines += ["", "## Inputs", ""] + [f"- {name}: `{entry['path']}`" for name, entry in artifact.manifest["inputs"].items()]
    lines += ["", "## Plugins", ""] + [f"- {row['kind']}: {row['part']} {row['version']}" for row in artifact.manifest["plugins"]]
    key = slug(f"{run}-{stage}")
    create_markdown_artifact("\n".join(lines), key=f"{key}-summary", description=f"What {stage} made")
    if rows := [{"metric": name, "value": number(value)} for name, value in flat_metrics(artifact.metrics)]:
        create_table_artifact(rows, key=f"{key}-metrics", description=f"Metrics of {stage}")
    if report := artifact.metrics.get("report"):
        create_link_artifact(
            (artifact.path / str(report)).as_uri(), link_text=f"Report of {run}", key=f"{key}-link", description="The report, a file on this machine"
        )


def _describe_run(title: str, results: dict[str, dict[str, Any]]) -> None:
    rows = [
        {"run": run, "stage": stage, "status": r["status"], "seconds": f"{r['seconds']:.1f}", "metrics": headline(r["metrics"]), "path": r["path"]}
        for run, stages in results.items()
        for stage, r in stages.items()
    ]
    create_table_artifact(rows, key=slug(f"{title}-stages"), description="Every stage of this run")


def slug(text: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
