"""What every flow does: build stages as tasks of one flow run, and make the run readable in Prefect's pages.

Prefect is a view here: fingerprints, reuse, locks and the commit are feebcore's, and so are studies with their ledger. A stage of a
run becomes a task, one that is finished a task that says so. One flow run has a fixed cost of about a second, a task
of some hundredths, therefore no subflows.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import functools
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect import get_run_logger, runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import Abort, Pause, TerminationSignal
from prefect.logging.handlers import PrefectConsoleHandler
from prefect.states import Cancelled, Failed, State

from feeb_pipelines.runs import claim_run, describe_run, reconcile_runs, stopping_when_cancelled
from feeb_pipelines.server import keep_alive
from feeb_pipelines.summary import headline, highlights, metric_rows, number
from feeb_pipelines.task_runners import open_task_runner
from feebcore.artifacts import Artifact, Workspace
from feebcore.claims.conclude import command_of, conclude
from feebcore.data.task_runner import offering
from feebcore.errors import FeebError, Interrupted, StageFailed
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


STOPPED = "stopped between stages; run the same command again to continue"

MOST_TAGS = 40
"""Runs of a study that are named in its tags; Prefect's pages show them all in a row."""


errors: dict[UUID, FeebError] = {}
"""What ended flow runs of this process, for the command line; Prefect itself would log the traceback of a sentence, three times."""

Describe = Callable[[str, Sequence[str]], None]
"""Gives the flow run a title and tags."""


def _in_flow_run(workspace: str | None, jobs: int, body: Callable[[Workspace, Describe], Any]) -> Any:
    """Call `body` inside a flow run that bears this process's mark, with warm workers for the runs of studies.

    Returns what `body` does, or the state that says how it ended.
    """
    space = Workspace(workspace)
    run = claim_run(UUID(str(runtime.flow_run.id)), space.root)
    keep_alive(space.root)
    _survive_broken_pipes()
    logger = get_run_logger()
    for name in reconcile_runs(space.root):
        logger.warning("run %s was left unfinished by a kill; it is marked as ended now", name)
    describe: Describe = lambda title, tags: describe_run(run, title, tags[: MOST_TAGS + 1])  # noqa: E731
    with stopping_when_cancelled(run) as stop, WarmWorkers(max(jobs, 1)) as workers, executing(workers, _as_task):
        try:
            if jobs < 1:
                raise FeebError(f"jobs: {jobs}; at least one run must be in progress")
            return body(space, describe)
        except (Interrupted, KeyboardInterrupt) as stopped:
            error: FeebError = stopped if isinstance(stopped, Interrupted) else Interrupted(STOPPED)
            state: State = Cancelled(message=str(error))
            if stop.state is not None and stop.state.is_paused() and run.deployment_id is not None:
                logger.info("suspended; resuming the run continues from what is saved")
                raise Pause(state=stop.state) from None
        except FeebError as failed:
            error, state = failed, Failed(message=str(failed))
    if run.deployment_id is None:
        errors[run.id] = error
        return state
    log = logger.warning if isinstance(error, Interrupted) else logger.error
    log("%s", error)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)
    ended = Abort(str(error))  # a state that is returned ends the process with a traceback
    ended.__dict__["state"] = state
    raise ended


def _survive_broken_pipes() -> None:
    """A worker that dies takes the pipe of this process's output with it; the run goes on in silence."""
    for logger in [logging.getLogger(), *map(logging.getLogger, logging.root.manager.loggerDict)]:
        for handler in logger.handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.console.on_broken_pipe = functools.partial(setattr, handler.console, "quiet", True)  # type: ignore[method-assign]


def run_stages(
    stages: Sequence[str] | None, recipe: str, overrides: Sequence[str] | None, workspace: str | None, jobs: int = 1, unchecked: bool = False
) -> Any:
    """Inside a flow run: build `stages` (None: all) of every run of the recipe, and what they need.

    jobs: number of parallel runs of a study or sweep. A run that fails does not end the others; the flow fails at the end, unless
    all that failed diverged and the recipe has claims, to which that is a result.

    Returns {run: {stage: {path, fingerprint, status, seconds, metrics}}}, with "claims" next to the stages of the first run
    where the recipe has some; a Cancelled state after SIGINT, SIGTERM or a cancellation in Prefect; a Failed one with a sentence.
    """
    began = time.time()

    def body(space: Workspace, describe: Describe) -> Any:
        recipes = load_study(recipe, list(overrides or ()))
        first = recipes[0]
        title = f"{first.data.get('name') or first.path.stem}-{'-'.join(stages or ['pipeline'])}"
        describe(title, [*(stages or ["pipeline"]), *sorted({r.name for r in recipes})])
        results, failures = run_variants(recipes, stages, space, _publish, OwnProcesses(), unchecked)
        _describe_run(title, results)
        page = conclude(recipes, results, failures, space, command_of(recipe, overrides or ()))
        if page is not None:
            results[first.name]["claims"] = stage_result(page, page.manifest["finished"] <= began, 0.0)
            create_markdown_artifact(page.file("page.md").read_text(), key=slug(f"{title}-claims"), description="What the study's runs say of its claims")
        return results

    return _in_flow_run(workspace, jobs, body)


def run_comparison(
    recipes: Sequence[str],
    settings: Mapping[str, Any],
    overrides: Sequence[str],
    quick: bool,
    workspace: str | None,
    jobs: int,
    unchecked: bool = False,
    law: bool = False,
) -> Any:
    """Inside a flow run: the comparison of the recipes, or of their laws. Returns {"path", "fingerprint", "status", ...} of its artifact, or a state as
    `run_stages` does."""
    from feebcore.compare.law import LawSettings, command_of, compare_laws, name_of
    from feebcore.compare.plan import Settings, load_candidates, load_recipes
    from feebcore.compare.run import compare

    began = time.time()

    def body(space: Workspace, describe: Describe) -> Any:
        if law:
            asked = LawSettings(**settings)
            sides = load_recipes(recipes, overrides, quick)
            title = f"compare-{name_of([r.name for r in sides], asked)}"
            describe(title, ["compare", *sorted({r.name for r in sides})])
            artifact = compare_laws(sides, asked, space, _publish, command_of(recipes, asked, overrides, quick), unchecked)
        else:
            chosen, variants, command = load_candidates(recipes, Settings(**settings), overrides, quick)
            title = f"compare-{chosen.name or '-vs-'.join(r.name for r in variants[:4])}"
            describe(title, ["compare", *sorted({r.name for r in variants})])
            artifact = compare(variants, chosen, space, _publish, command, unchecked)
        create_markdown_artifact(artifact.file("page.md").read_text(), key=slug(title), description="The verdict of the comparison")
        return stage_result(artifact, artifact.manifest["finished"] <= began, round(time.time() - began, 3))

    return _in_flow_run(workspace, jobs, body)


def _as_task(run: str, stage: str, item: PlanItem, on_progress: ProgressFn, build: Callable[[ProgressFn], Artifact]) -> Artifact:
    """The stage of a run as a task of this flow run. What it needs comes by closure: Prefect would walk through it as parameters."""
    task_runners = functools.partial(open_task_runner, contextvars.copy_context())  # of the flow: here no task has begun
    watcher = _Watcher(run, stage, on_progress)
    made: list[Artifact] = []
    raised: list[BaseException] = []

    @task(  # no tags: for each set of them Prefect asks the server for concurrency limits, which takes seconds
        name=stage,
        task_run_name="{run}-{stage}",
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
        except (Interrupted, KeyboardInterrupt, TerminationSignal) as stopped:
            raised.append(Interrupted(STOPPED) if isinstance(stopped, KeyboardInterrupt) else stopped)
            watcher.logger.warning("%s", raised[0] if isinstance(raised[0], Interrupted) else STOPPED)
            return Cancelled(message=str(raised[0]))
        except FeebError as failed:
            raised.append(failed)
            watcher.logger.error("%s%s", failed, log_tail(failed))
            return Failed(message=str(failed))
        made.append(artifact)
        result = stage_result(artifact, item.artifact is not None, time.monotonic() - began)
        watcher.end(artifact, result)
        return result

    state = build_stage(stage=stage, run=run, fingerprint=item.fingerprint, return_state=True)
    if raised:
        raise raised[0]
    state.result()  # raises what the stage raised
    return made[0]


def log_tail(failed: FeebError, lines: int = 15) -> str:
    """The end of the log that the error names: it lies on the worker's machine, and this goes to Prefect."""
    if not isinstance(failed, StageFailed) or failed.log is None:
        return ""
    with contextlib.suppress(OSError):
        return "\n" + "\n".join(failed.log.read_text(errors="replace").strip().splitlines()[-lines:])
    return ""


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
    if rows := metric_rows(artifact.metrics):
        create_table_artifact(rows, key=f"{key}-metrics", description=f"Metrics of {stage}")
    if report := artifact.metrics.get("report"):
        create_markdown_artifact(_report_page(artifact, str(report)), key=f"{key}-report", description=f"Figures of the report of {run}")


MOST_FIGURE_BYTES = 1_000_000
"""Of the figures that go into Prefect's database; the report has them all."""


def _report_page(artifact: Artifact, report: str) -> str:
    """The report's figures as Markdown. A link would not do: browsers open no file from a page of a server."""
    parts = [f"The whole report: `{artifact.path / report}`, a file on the machine of the worker."]
    left = MOST_FIGURE_BYTES
    for figure in sorted((artifact.path / "figures").glob("*.png")):
        left -= figure.stat().st_size
        if left >= 0:
            parts.append(f"## {figure.stem.replace('_', ' ')}\n\n![{figure.stem}](data:image/png;base64,{base64.b64encode(figure.read_bytes()).decode()})")
    return "\n\n".join(parts)


def _describe_run(title: str, results: dict[str, dict[str, Any]]) -> None:
    rows = [
        {
            "run": run,
            "stage": stage,
            "status": r["status"],
            "fingerprint": r["fingerprint"],
            "seconds": f"{r['seconds']:.1f}",
            "metrics": headline(r["metrics"]),
            "path": r["path"],
        }
        for run, stages in results.items()
        for stage, r in stages.items()
    ]
    create_table_artifact(rows, key=slug(f"{title}-stages"), description="Every stage of this run")


def slug(text: str) -> str:
    """A Prefect artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
