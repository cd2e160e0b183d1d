"""Where the stages of runs are built: in this process, in a process of its own each, or in warm worker processes.

An executor's `build` is `feebcore.run.build.build`, somewhere else. Whoever runs stages may choose one (`executing`, around the
call); a study inside, as that of a sweep, then shares its slots. No child opens a ledger: children only commit artifacts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import wait  # select.select refuses descriptors from 1024 on
from pathlib import Path
from typing import Any, Protocol

from feebcore.artifacts import Artifact, Workspace, read_artifact
from feebcore.errors import ArtifactError, Diverged, FeebError, Interrupted, StageFailed
from feebcore.hardware import available_cpus, cuda_devices
from feebcore.recipe import Recipe
from feebcore.run.build import build
from feebcore.run.plan import PlanItem, plan_stage
from feebcore.run.processes import SECONDS_TO_SAVE, how_it_ended, memory_hint, num_ranks, running

ProgressFn = Callable[[dict[str, Any]], None]


class Executor(Protocol):
    """jobs: how many runs it builds at once. in_caller: it must be called from the thread that started the study."""

    jobs: int
    in_caller: bool

    def build(self, recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact], on_progress: ProgressFn) -> Artifact:
        """The stage's artifact. Raises Interrupted, Diverged, StageFailed or what the stage raised."""
        ...


class InProcess:
    """Everything in this process: for a debugger."""

    jobs = 1
    in_caller = True

    def build(self, recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact], on_progress: ProgressFn) -> Artifact:
        return build(recipe, stage, workspace, built, on_progress, in_process=True)


class OwnProcesses:
    """Each stage as its spec says: inline ones in this process, others in one process of their own, or one a rank."""

    jobs = 1
    in_caller = True

    def build(self, recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact], on_progress: ProgressFn) -> Artifact:
        return build(recipe, stage, workspace, built, on_progress)


class WarmWorkers:
    """`jobs` long-lived processes, each of which builds one stage after another; started when they are first needed.

    Stages that are said to run inline run here, and those with several ranks in processes of their own. Each worker has its share
    of the CPU's threads and, where the stage may use CUDA, one device that no other worker on this machine has. Close it, or
    use it in a `with`.
    """

    in_caller = False

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._slots = threading.Semaphore(jobs)
        self._devices = threading.Semaphore(max(1, len(cuda_devices())))
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._workers: list[_Worker] = []

    def build(self, recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact], on_progress: ProgressFn) -> Artifact:
        entry = recipe.stages[stage]
        if entry.spec.process == "inline":
            return build(recipe, stage, workspace, built, on_progress)
        wants_device = dict(entry.section).get("device", "cpu") != "cpu" and bool(cuda_devices())
        with contextlib.ExitStack() as stack:
            stack.enter_context(_acquired(self._slots))
            if num_ranks(entry.section) > 1:
                return build(recipe, stage, workspace, built, on_progress)
            if wants_device:
                stack.enter_context(_acquired(self._devices))
            worker = self._take(wants_device, on_progress)
            try:
                return worker.build(recipe, stage, workspace, built, on_progress)
            finally:
                with self._lock:
                    self._idle.append(worker)

    def _take(self, wants_device: bool, on_progress: ProgressFn) -> _Worker:
        """An idle worker with (or without) a device, or a new one in the place of one that is not."""
        with self._lock:
            for worker in [worker for worker in self._idle if not worker.alive]:
                self._drop(worker)
            if fitting := [worker for worker in self._idle if worker.has_device == wants_device]:
                self._idle.remove(fitting[-1])
                return fitting[-1]
            if len(self._workers) >= self.jobs:
                self._drop(self._idle[0])
        worker = _Worker(self.jobs, wants_device, on_progress)
        with self._lock:
            self._workers.append(worker)
        return worker

    def _drop(self, worker: _Worker) -> None:
        worker.close()
        self._idle.remove(worker)
        self._workers.remove(worker)

    def close(self) -> None:
        """End the workers, which must be idle."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()
        self._idle.clear()

    def __enter__(self) -> WarmWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Worker:
    """One warm process, its two pipes and its CUDA device."""

    def __init__(self, jobs: int, wants_device: bool, on_progress: ProgressFn) -> None:
        self.asked = False
        self.deadline = float("inf")
        self.has_device = wants_device
        device: str | None = None
        lock = -1
        if wants_device:
            device, lock = _lease_device(on_progress)
        self._log = tempfile.TemporaryFile()
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self._unread = b""
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "feebcore.study.worker", str(requests), str(replies)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=[fd for fd in (requests, replies, lock) if fd >= 0],  # the device stays leased while the worker saves
                start_new_session=True,
                env=_environment(jobs, device),
            )
        finally:
            for handle in (requests, replies, lock):
                if handle >= 0:
                    os.close(handle)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def build(self, recipe: Recipe, stage: str, workspace: Workspace, built: Mapping[str, Artifact], on_progress: ProgressFn) -> Artifact:
        item = plan_stage(recipe, stage, workspace, built)
        if item.artifact is not None:
            return item.artifact
        request = {"recipe": recipe.resolved(), "path": str(recipe.path), "stage": stage, "workspace": str(workspace.root), "fingerprint": item.fingerprint}
        request |= {"changes": recipe.changes, "built": {name: str(artifact.path) for name, artifact in built.items()}}
        self.asked, self.deadline = False, float("inf")
        with running(self):
            with contextlib.suppress(BrokenPipeError):
                os.write(self._requests, json.dumps(request).encode() + b"\n")
            outcome = self._outcome(on_progress)
        if outcome is None:
            raise self._died(stage, item, workspace)
        if "path" in outcome:
            artifact = read_artifact(Path(outcome["path"]))
            if artifact is None:
                raise ArtifactError(f"{outcome['path']} has no manifest though a worker has said that it is finished")
            return artifact
        kinds: dict[str, type[FeebError]] = {kind.__name__: kind for kind in (Interrupted, ArtifactError, Diverged)}
        if outcome["error"] in kinds:
            raise kinds[outcome["error"]](outcome["message"])
        log = self._log_of(stage, item, workspace)
        raise StageFailed(f"{outcome['message']}{memory_hint(outcome['message'])}{_where(log)}", log)

    def ask(self) -> None:
        """SIGTERM, with SECONDS_TO_SAVE seconds to end in; asked again, none."""
        self.deadline = 0.0 if self.asked else time.monotonic() + SECONDS_TO_SAVE
        self.asked = True
        if self.alive:
            self._process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """End at once, with whatever the process has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for handle in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                os.close(handle)
        self._log.close()

    def _outcome(self, on_progress: ProgressFn) -> dict[str, Any] | None:
        """Events are passed on until the outcome comes; None when the process ends without one."""
        while True:
            if time.monotonic() > self.deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            if not wait([self._replies], 0.2):
                if not self.alive and not wait([self._replies], 0):
                    return None
                continue
            data = os.read(self._replies, 1 << 16)
            if not data:
                self._process.wait()
                return None
            *lines, self._unread = (self._unread + data).split(b"\n")
            for line in lines:
                row = json.loads(line)
                if "event" not in row:
                    return row
                on_progress(row["event"])

    def _died(self, stage: str, item: PlanItem, workspace: Workspace) -> FeebError:
        code = self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it had started
        if self.asked:
            return Interrupted(f"stage {stage} was stopped; what it had saved is kept, run the same command again to continue")
        self._log.seek(0)
        tail = self._log.read().decode(errors="replace").strip().splitlines()
        return StageFailed(
            f"{stage}: the worker {how_it_ended(code)}{_where(self._log_of(stage, item, workspace))}" + "".join(f"\n{line}" for line in tail[-20:])
        )

    def _log_of(self, stage: str, item: PlanItem, workspace: Workspace) -> Path | None:
        logs = [folder / "log.txt" for folder in workspace.folders(stage, item.fingerprint)]
        return logs[0] if logs and logs[0].exists() else None


def _where(log: Path | None) -> str:
    return f" (log: {log})" if log else ""


def _environment(jobs: int, device: str | None) -> dict[str, str]:
    shared = {"OMP_NUM_THREADS": str(max(1, available_cpus() // jobs))} if jobs > 1 else {}
    return shared | dict(os.environ) | {"PYTHONIOENCODING": "utf-8:backslashreplace"} | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})


def _lease_device(on_progress: ProgressFn) -> tuple[str, int]:
    """A CUDA device and the open lock that says so: it is free again once every process that holds the handle has ended."""
    folder = Path(tempfile.gettempdir()) / f"feeb-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with _waiting() as wait:
        while True:
            for name in cuda_devices():
                handle = os.open(folder / f"{name.replace('/', '-')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return name, handle
                except BlockingIOError:
                    os.close(handle)
            if not wait.turns:
                on_progress({"kind": "log", "time": time.time(), "text": f"every CUDA device is leased by a worker (see {folder}); waiting for one"})
            wait.turn()


class _Wait:
    """A wait that ends with Interrupted when runs are asked to stop."""

    def __init__(self) -> None:
        self.asked, self.turns = False, 0

    def ask(self) -> None:
        self.asked = True

    def turn(self, seconds: float = 0.2) -> None:
        self.turns += 1
        if self.asked:
            raise Interrupted("stopped while waiting; run the same command again to continue")
        time.sleep(seconds)


@contextlib.contextmanager
def _waiting() -> Iterator[_Wait]:
    wait = _Wait()
    with running(wait):
        yield wait


@contextlib.contextmanager
def _acquired(semaphore: threading.Semaphore) -> Iterator[None]:
    with _waiting() as wait:
        while not semaphore.acquire(timeout=0.2):
            wait.turn(0.0)
    try:
        yield
    finally:
        semaphore.release()


# --- chosen by whoever runs stages --------------------------------------------------------------------------------------

Around = Callable[[str, str, PlanItem, ProgressFn, Callable[[ProgressFn], Artifact]], Artifact]
"""`around(run, stage, item, on_progress, build)` returns `build(on_progress)`; an orchestrator makes it a task of its own."""


def _plainly(run: str, stage: str, item: PlanItem, on_progress: ProgressFn, build: Callable[[ProgressFn], Artifact]) -> Artifact:
    return build(on_progress)


@dataclass(frozen=True)
class Execution:
    """How the runs of a study are built: where, and what is done around each stage of each run."""

    executor: Executor
    around: Around = _plainly


_execution: ContextVar[Execution] = ContextVar("feeb_execution", default=Execution(InProcess()))  # noqa: B039


@contextlib.contextmanager
def executing(executor: Executor, around: Around = _plainly) -> Iterator[None]:
    """Studies that run inside build their runs with this executor."""
    token = _execution.set(Execution(executor, around))
    try:
        yield
    finally:
        _execution.reset(token)


def current_execution() -> Execution:
    return _execution.get()


__all__ = ["Around", "Execution", "Executor", "InProcess", "OwnProcesses", "ProgressFn", "WarmWorkers", "current_execution", "executing"]
