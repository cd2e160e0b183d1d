"""The loop of a study: ask the proposer, lease, build, record; until nothing is proposed and nothing is left to build.

    records = run_study(propose, ledger, workspace, built, record, on_progress)

A run that fails is retried MAX_ATTEMPTS - 1 times, behind the others, and has then failed; the others go on. What became of
each is in the records, which a conclusion turns into an artifact and `runs.missing` into sentences.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from feebcore.artifacts import MANIFEST, Artifact, Workspace
from feebcore.errors import Diverged, FeebError, Interrupted, plural
from feebcore.recipe import Recipe
from feebcore.run.plan import plan_stage, reused_from_another_feeb
from feebcore.run.processes import SAME_REQUEST, stop_running
from feebcore.study.executors import Execution, ProgressFn, current_execution
from feebcore.study.ledger import LeaseLost, Ledger, this_owner
from feebcore.study.runs import RunRecord, RunSpec, run_id, stages_to_build

MAX_ATTEMPTS = 3
"""How often a run may fail before it has failed for good."""

LEASE_SECONDS = 120.0

Proposer = Callable[[Mapping[str, RunRecord]], Sequence[RunSpec]]
"""`propose(records)`, by name, of all that is known: the runs that are wanted next. Those it has proposed before are left out or
proposed again as they were. Called at the beginning and whenever a run has ended."""

Recorder = Callable[[RunSpec, Mapping[str, Artifact]], Mapping[str, Any]]
"""`record(spec, artifacts)`: what the ledger keeps of a run, as JSON values. Raises Diverged when its number is none to use."""

_advised: set[Path] = set()
"""Reused artifacts that advice was given on, once a process: a study reuses its shared stages for every run."""

STOPPED = "stopped; what is finished is kept, run the same command again to continue"


def run_study(
    propose: Proposer,
    ledger: Ledger,
    workspace: Workspace,
    built: Mapping[str, Artifact],
    record: Recorder,
    on_progress: ProgressFn,
    stop_requested: Callable[[], bool] = lambda: False,
    on_ended: Callable[[RunRecord], None] = lambda record: None,
    max_attempts: int = MAX_ATTEMPTS,
) -> list[RunRecord]:
    """Build every run that `propose` asks for, with the executor that was chosen (`executing`); the records, in the order planned.

    built: artifacts of stages that all runs share, by stage. on_progress: events of the stages of all runs. on_ended: told of each
    run that ended. Failed runs of an earlier call are tried again. Raises Interrupted when asked to stop.
    """
    return _Study(propose, ledger, workspace, built, record, on_progress, stop_requested, on_ended, max_attempts).run()


class _Study:
    def __init__(
        self,
        propose: Proposer,
        ledger: Ledger,
        workspace: Workspace,
        built: Mapping[str, Artifact],
        record: Recorder,
        on_progress: ProgressFn,
        stop_requested: Callable[[], bool],
        on_ended: Callable[[RunRecord], None],
        max_attempts: int,
    ) -> None:
        self.propose, self.ledger, self.workspace, self.built, self.record = propose, ledger, workspace, built, record
        self.on_progress, self.stop_requested, self.on_ended, self.max_attempts = on_progress, stop_requested, on_ended, max_attempts
        self.execution: Execution = current_execution()
        self.owner = this_owner()
        self.specs: dict[str, RunSpec] = {}
        self.records: dict[str, RunRecord] = {}
        self.asked = threading.Event()

    def run(self) -> list[RunRecord]:
        self.ledger.expire()
        self.ledger.requeue()
        self.ledger.requeue([r.name for r in self.ledger.records() if r.status == "done" and not self._exists(r)])
        self._reload()
        with _stopping_on_signals(self.asked, self.execution.executor.in_caller), self._renewing():
            self._propose()
            if self.execution.executor.in_caller:
                self._one_by_one()
            else:
                self._several()
            self._drop_others()
        return [r for r in self.ledger.records() if r.name in self.specs]

    def _reload(self) -> None:
        self.records = {r.name: r for r in self.ledger.records()}

    def _propose(self) -> None:
        fresh = [spec for spec in self.propose(self.records) if spec.name not in self.specs]
        if fresh:
            self.ledger.plan(fresh, {spec.name: run_id(spec.recipe, spec.stages, self.workspace, self.built) for spec in fresh})
            self.specs |= {spec.name: spec for spec in fresh}
            self._reload()

    def _stop(self) -> bool:
        return self.asked.is_set() or self.stop_requested()

    def _lease(self) -> RunRecord | None:
        return self.ledger.lease(self.owner, LEASE_SECONDS, among=self.specs)

    def _drop_others(self) -> None:
        """What an earlier call with another plan has left is not of this study any more. Not before the end: it may just not be its turn yet."""
        while (record := self.ledger.lease(self.owner, LEASE_SECONDS)) is not None:
            self.ledger.fail(record.name, "it is not proposed any more", self.owner)

    def _one_by_one(self) -> None:
        while True:
            if self._stop():
                raise Interrupted(STOPPED)
            if (record := self._lease()) is None:
                if not self.ledger.counts()["leased"]:
                    return
                time.sleep(0.5)  # another process is at work on the last ones
                continue
            outcome: Mapping[str, Any] | Exception
            try:
                outcome = self._build(record)
            except Interrupted:
                self.ledger.release(record.name, self.owner)
                raise
            except Exception as error:
                outcome = error
            self._end(record, outcome)

    def _several(self) -> None:
        jobs = self.execution.executor.jobs
        running: dict[Future[Mapping[str, Any]], RunRecord] = {}
        stopped = False
        with ThreadPoolExecutor(jobs, thread_name_prefix="run") as pool:
            try:
                while True:
                    stopped = stopped or self._stop()
                    while not stopped and len(running) < jobs and (record := self._lease()) is not None:
                        running[pool.submit(contextvars.copy_context().run, self._build, record)] = record
                    if not running:
                        if stopped:
                            raise Interrupted(STOPPED)
                        if not self.ledger.counts()["leased"]:
                            return
                        time.sleep(0.5)  # another process is at work on the last ones
                        continue
                    if stopped:
                        stop_running()  # again and again: a stage may just have been about to begin
                    for future in wait(running, timeout=0.1, return_when=FIRST_COMPLETED).done:
                        record = running.pop(future)
                        error = future.exception()
                        if isinstance(error, Interrupted):
                            self.ledger.release(record.name, self.owner)
                            stopped = True
                        elif error is not None and not isinstance(error, Exception):
                            raise error
                        else:
                            self._end(record, error if error is not None else future.result())
            finally:
                if running:
                    self.asked.set()
                    stop_running(kill=True)
                    for record in running.values():
                        self.ledger.release(record.name, self.owner)

    def _build(self, record: RunRecord) -> Mapping[str, Any]:
        spec = self.specs[record.name]

        def publish(row: dict[str, Any]) -> None:
            name = {"name": f"{spec.name} {row.get('name') or ''}".strip()} if row["kind"] == "progress" else {}
            self.on_progress(row | name)

        artifacts = build_stages(spec.name, spec.recipe, spec.stages, self.workspace, self.built, self.execution, publish, self._stop)
        paths = {stage: os.path.relpath(artifact.path, self.workspace.root) for stage, artifact in artifacts.items()}
        return {**self.record(spec, artifacts), "artifacts": paths}

    def _end(self, record: RunRecord, outcome: Mapping[str, Any] | Exception) -> None:
        name = record.name
        final = True
        try:
            if isinstance(outcome, Diverged):
                self.ledger.diverged(name, str(outcome), self.owner)
                self.on_progress({"kind": "log", "time": time.time(), "text": f"{name} diverged, the other runs continue: {outcome}"})
            elif isinstance(outcome, Exception):
                reason = str(outcome) if isinstance(outcome, FeebError) else f"{type(outcome).__name__}: {outcome}"
                final = self.ledger.fail(name, reason, self.owner, self.max_attempts)
                what = f"failed {plural(self.max_attempts, 'time')}" if final else "failed and will be retried"
                self.on_progress({"kind": "log", "time": time.time(), "text": f"{name} {what}: {reason}"})
            else:
                self.ledger.done(name, outcome, self.owner)
        except LeaseLost as lost:  # we were away for longer than the lease; the artifact is there, whoever reports it
            self.on_progress({"kind": "log", "time": time.time(), "text": str(lost)})
            return
        if not final:
            return
        ended = self.ledger.record(name)
        if ended.status == "done":
            self.records |= {r.name: self.ledger.record(r.name) for r in self.records.values() if r.id == ended.id}
        else:
            self._reload()  # what waits for it has failed as well
        self.on_ended(ended)
        self._propose()

    def _exists(self, record: RunRecord) -> bool:
        return all((self.workspace.root / path / MANIFEST).exists() for path in record.result.get("artifacts", {}).values())

    @contextlib.contextmanager
    def _renewing(self) -> Iterator[None]:
        """Leases are renewed by a thread for as long as the block runs."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(LEASE_SECONDS / 4):
                self.ledger.renew(self.owner, LEASE_SECONDS)

        thread = threading.Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def build_stages(
    run: str,
    recipe: Recipe,
    stages: Sequence[str] | None,
    workspace: Workspace,
    built: Mapping[str, Artifact],
    execution: Execution,
    on_progress: ProgressFn,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Artifact]:
    """`stages` of one run (None: all) and what they need, in order; those in `built` are taken as they are and not returned.

    on_progress is told of each stage as it begins ('stage') and ends ('done'), and of its events. Raises Interrupted, or what a
    stage raised.
    """
    order = stages_to_build(recipe, stages, built)
    artifacts = dict(built)
    for index, stage in enumerate(order):
        if stop_requested():
            raise Interrupted(STOPPED)
        item = plan_stage(recipe, stage, workspace, artifacts)
        head = {"time": time.time(), "run": run, "stage": stage}
        on_progress({"kind": "stage", **head, "status": item.status, "index": index, "total": len(order)})
        if item.artifact is not None and item.artifact.path not in _advised:
            _advised.add(item.artifact.path)
            if advice := reused_from_another_feeb([item.artifact]):
                on_progress({"kind": "log", **head, "text": advice})
        began = time.monotonic()

        def make(listener: ProgressFn, stage: str = stage, finished: Artifact | None = item.artifact) -> Artifact:
            return finished or execution.executor.build(recipe, stage, workspace, artifacts, listener)

        artifacts[stage] = execution.around(run, stage, item, on_progress, make)
        on_progress({"kind": "done", **head, **stage_result(artifacts[stage], item.artifact is not None, time.monotonic() - began)})
    return {stage: artifacts[stage] for stage in order}


def stage_result(artifact: Artifact, reused: bool, seconds: float) -> dict[str, Any]:
    """What flows return and the command line shows of a stage."""
    head = {"path": str(artifact.path), "fingerprint": artifact.fingerprint, "status": "reused" if reused else "built"}
    return head | {"seconds": round(seconds, 3), "metrics": artifact.metrics}


@contextlib.contextmanager
def _stopping_on_signals(asked: threading.Event, in_caller: bool) -> Iterator[None]:
    """SIGINT and SIGTERM ask the runs at work to save and end, and let no other begin; a second one ends everything at once.

    in_caller: stages run in this very thread and answer signals themselves, as they do where this is not the main thread.
    """
    if in_caller or threading.current_thread() is not threading.main_thread():
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


def open_ledger(workspace: Workspace, name: str, identity: str) -> Ledger:
    """The ledger of a study that has no folder of its own: `<workspace>/.studies/<name>-<identity>.sqlite`."""
    path = ledger_of(workspace, name, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    return Ledger(path)


def ledger_of(workspace: Workspace, name: str, identity: str) -> Path:
    """Where `open_ledger` keeps it."""
    return workspace.root / ".studies" / f"{name}-{identity}.sqlite"
