"""Flow runs and the processes behind them: who is alive, and what to say of those that are not.

A process that carries flow runs of a workspace holds an exclusive flock on `<workspace>/.prefect/runs/<process>.lock` for as long as
it lives, and its flow runs bear labels that name both. A flow run is dead when it bears this workspace's label and nobody holds its
lock; `reconcile_runs` gives it and its task runs a final state. Whatever bears no such label is somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from feeb_pipelines.server import home_of
from feebcore.files import is_locked
from feebcore.run.processes import stop_running

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, State

TAG = "feeb"
"""Of every flow run of a feeb flow, so that a server can tell them from others."""

WORKSPACE, PROCESS = "feeb.workspace", "feeb.process"
"""Labels of a flow run: the workspace's id, and the name of its process's lock."""

MESSAGE = "The process of this run was killed; what it had saved is kept, and running the same recipe again continues from there."
WATCH_SECONDS = 3.0
"""Between two looks at whether a run is cancelled."""

WORKER_PATIENCE = 15.0
"""Seconds in which a worker that is alive ends a run that it has started; longer than a stage has to save."""

STARTING = timedelta(seconds=30)
"""A retried run bears its last process's labels for as long as the new one needs to set its own."""

PAGE = 200

_held: dict[Path, dict[str, str]] = {}
Item = TypeVar("Item")


def labels_of_process(workspace: Path) -> dict[str, str]:
    """What says that this process carries a flow run of the workspace. It takes the lock, and keeps it until it ends."""
    folder = home_of(workspace) / "runs"
    if folder not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        _held[folder] = {WORKSPACE: _workspace_id(folder.parent), PROCESS: _lock(folder)}
    return _held[folder]


def create_run(flow: Flow[..., Any], parameters: Mapping[str, Any], workspace: Path) -> FlowRun:
    """A flow run that says from its first moment whose it is."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import FlowRunCreate
    from prefect.client.schemas.objects import FlowRun
    from prefect.states import Pending, to_state_create

    with get_client(sync_client=True) as client:
        wanted = FlowRunCreate(
            flow_id=client.create_flow(flow),
            flow_version=flow.version,
            parameters=flow.serialize_parameters(dict(parameters)),
            state=to_state_create(Pending()),
            tags=[TAG],
            labels=dict(labels_of_process(workspace)),
        )
        answer = client.request("POST", "/flow_runs/", json=wanted.model_dump(mode="json", exclude_unset=True))
        return FlowRun.model_validate(answer.json())


def claim_run(id: UUID, workspace: Path) -> FlowRun:
    """Label a flow run as this process's."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        labels = labels_of_process(workspace)
        run = client.read_flow_run(id)
        if run.labels.get(PROCESS) != labels[PROCESS]:
            client.update_flow_run_labels(id, dict(labels))
        if TAG not in run.tags:
            client.update_flow_run(id, tags=[*run.tags, TAG])
        return run


def describe_run(run: FlowRun, title: str, tags: Sequence[str]) -> None:
    """Give a flow run a title, unless its user has named it, and tags in addition to those that its user chose."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=title if _is_generated(run.name) else None, tags=[*dict.fromkeys([*run.tags, TAG, *tags])])


def reconcile_runs(workspace: Path) -> list[str]:
    """Give a final state to the flow runs of this workspace, and their task runs, that no process carries any more. Returns their names."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled, Crashed

    folder = home_of(workspace) / "runs"
    if not (folder.parent / "id").exists():
        return []
    names = []
    with get_client(sync_client=True) as client:
        for run in _unfinished(client, folder):
            assert run.state is not None
            state: State = Cancelled(message=MESSAGE) if run.state.is_cancelling() else Crashed(message=MESSAGE)
            _end_tasks(client, run.id, state)
            client.set_flow_run_state(run.id, state, force=True)
            names.append(run.name)
        for id in _with_unfinished_tasks(client, folder):
            _end_tasks(client, id, Crashed(message=MESSAGE))
    for path in folder.glob("*.lock"):
        _remove_free(path)
    return names


def unfinished_runs() -> list[str]:
    """Names of flow runs of feeb that this server takes to be in progress."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return [run.name for run in client.read_flow_runs(flow_run_filter=_of_feeb("PENDING", "RUNNING"), limit=PAGE)]


@contextlib.contextmanager
def stopping_when_cancelled(run: FlowRun) -> Iterator[StopRequest]:
    """While the block runs, stop the stages at work once the flow run is cancelled or suspended in Prefect, as Ctrl-C would.

    A worker signals the runs that it has started itself; this is for `feeb run`, and for runs whose worker has gone.
    """
    from prefect.client.orchestration import get_client

    request, over = StopRequest(), threading.Event()
    idle_limit = 1.0 if run.deployment_id is None else WORKER_PATIENCE

    def watch() -> None:
        idle_since = None
        with get_client(sync_client=True) as client:
            while not over.wait(WATCH_SECONDS if request.state is None else 0.5):
                if request.state is None:
                    with contextlib.suppress(Exception):  # no answer now; the server may come back
                        state = client.read_flow_run(run.id).state
                        if state is not None and (state.is_cancelling() or state.is_cancelled() or state.is_paused()):
                            request.state = state
                elif stop_running():
                    idle_since = None
                elif time.monotonic() - (idle_since := idle_since or time.monotonic()) > idle_limit:
                    os.kill(os.getpid(), signal.SIGINT)  # between stages, or waiting for another process
                    return

    thread = threading.Thread(target=watch, name="watch-cancel", daemon=True)
    thread.start()
    try:
        yield request
    finally:
        over.set()
        thread.join(1.0)  # a server that has gone keeps it for longer


@dataclass
class StopRequest:
    """state: what somebody has set the flow run to, once they have."""

    state: State | None = None


def _unfinished(client: SyncPrefectClient, folder: Path) -> list[FlowRun]:
    """Dead flow runs. A deployed one that is Pending waits for a process, and may bear the labels of its last one."""
    runs = _all(lambda offset: client.read_flow_runs(flow_run_filter=_of_feeb("PENDING", "RUNNING", "CANCELLING"), limit=PAGE, offset=offset))
    dead = []
    for run in runs:
        assert run.state is not None
        waits = run.deployment_id is not None and run.state.is_pending()
        starting = run.run_count > 1 and datetime.now(UTC) - run.state.timestamp < STARTING
        if not waits and not starting and _is_dead(run, folder):
            dead.append(run)
    return dead


def _with_unfinished_tasks(client: SyncPrefectClient, folder: Path) -> list[UUID]:
    """Dead flow runs that somebody else, such as their worker, has given a final state, but not their tasks."""
    from prefect.client.schemas.filters import TaskRunFilter

    tasks = TaskRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}})
    ended = _of_feeb("CRASHED", "FAILED", "CANCELLED", "COMPLETED")
    runs = {t.flow_run_id for t in _all(lambda o: client.read_task_runs(flow_run_filter=ended, task_run_filter=tasks, limit=PAGE, offset=o)) if t.flow_run_id}
    return [id for id in runs if _is_dead(client.read_flow_run(id), folder)]


def _all(page: Callable[[int], list[Item]]) -> list[Item]:
    items: list[Item] = []
    while len(found := page(len(items))) == PAGE:
        items += found
    return items + found


def _of_feeb(*states: str) -> Any:
    from prefect.client.schemas.filters import FlowRunFilter

    return FlowRunFilter.model_validate({"state": {"type": {"any_": list(states)}}, "tags": {"all_": [TAG]}})


def _end_tasks(client: SyncPrefectClient, id: UUID, state: State) -> None:
    from prefect.client.schemas.filters import FlowRunFilter

    mine = FlowRunFilter.model_validate({"id": {"any_": [str(id)]}})
    for task_run in _all(lambda offset: client.read_task_runs(flow_run_filter=mine, limit=PAGE, offset=offset)):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, state, force=True)


def _is_dead(run: FlowRun, folder: Path) -> bool:
    process = run.labels.get(PROCESS)
    return isinstance(process, str) and run.labels.get(WORKSPACE) == _workspace_id(folder.parent) and not is_locked(folder / f"{process}.lock")


def _remove_free(path: Path) -> None:
    with contextlib.suppress(OSError), open(path, "rb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _lock(folder: Path) -> str:
    """Take a new lock for the life of this process; its name tells whoever looks whose it is."""
    while True:
        name = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        path = folder / f"{name}.lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():  # else somebody has removed it as one that nobody holds, before it was held
            return name
        os.close(handle)


def _workspace_id(home: Path) -> str:
    """Made once; a path would be another workspace's on another machine."""
    path = home / "id"
    if not path.exists():
        temporary = path.with_name(f".id.{uuid.uuid4().hex}")
        temporary.write_text(uuid.uuid4().hex)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    return path.read_text()


def _is_generated(name: str) -> bool:
    """Whether Prefect made this name up: an adjective and an animal."""
    from coolname.data import config

    parts: Mapping[str, Any] = config
    words = {word for part in parts.values() if part["type"] == "words" for word in part["words"]}
    pair = name.split("-")
    return len(pair) == 2 and words.issuperset(pair)
