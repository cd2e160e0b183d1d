"""Flow runs and the processes behind them: who is alive, and what to say of those that are not.

Each flow process holds an exclusive flock on `<workspace>/.prefect/runs/<flow run id>.lock` while it runs. A lock that
can be taken belongs to a dead process; `reconcile_runs` gives its flow run and task runs a final state.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from feeb_pipelines.flows import NAMES
from feeb_pipelines.server import home_of
from feebcore.files import read_json

MESSAGE = "The process of this run was killed; what it had saved is kept, and running the same recipe again continues from there."
EMBEDDED = "embedded"
SHORT_LIVED = timedelta(seconds=30)
"""Between its creation and its lock a run needs less than this."""


@contextlib.contextmanager
def lock_run(workspace: Path, flow_run_id: UUID | str) -> Iterator[None]:
    """Say that this process carries the flow run, for as long as the block runs or the process lives."""
    path = home_of(workspace) / "runs" / f"{flow_run_id}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    fcntl.flock(handle, fcntl.LOCK_EX)
    os.write(handle, _server_name(workspace).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def reconcile_runs(workspace: Path) -> list[str]:
    """Set flow runs, and their task runs, that a killed process left unfinished to Crashed. Returns their names."""
    from prefect.client.orchestration import get_client

    dead = _dead_locks(workspace)
    with get_client(sync_client=True) as client:
        ids = {UUID(path.stem) for path in dead}
        if _server_name(workspace) == EMBEDDED:
            ids |= _never_locked(client, workspace)
        names = [name for id in sorted(ids, key=str) if (name := _crash(client, id))]
    for path in dead:
        path.unlink(missing_ok=True)
    return names


def _dead_locks(workspace: Path) -> list[Path]:
    locks, server = [], _server_name(workspace)
    for path in sorted((home_of(workspace) / "runs").glob("*.lock")):
        with contextlib.suppress(OSError), open(path, "r+b") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if handle.read().decode() == server:
                locks.append(path)
    return locks


def _never_locked(client: Any, workspace: Path) -> set[UUID]:
    """Runs that a `feeb run` created and was killed before it took their lock. Deployed runs may wait for a worker."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.objects import StateType

    run_filter = FlowRunFilter.model_validate({"state": {"type": {"any_": [StateType.PENDING.value, StateType.RUNNING.value]}}})
    recent = datetime.now(UTC) - SHORT_LIVED
    ours = FlowFilter.model_validate({"name": {"any_": [*NAMES]}})
    unfinished = client.read_flow_runs(flow_filter=ours, flow_run_filter=run_filter, limit=200)
    locks = home_of(workspace) / "runs"
    return {r.id for r in unfinished if r.deployment_id is None and r.created < recent and not (locks / f"{r.id}.lock").exists()}


def _crash(client: Any, id: UUID) -> str:
    """The flow run's name when it was unfinished, '' when it had ended or the server does not know it."""
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.exceptions import ObjectNotFound
    from prefect.states import Crashed

    try:
        run = client.read_flow_run(id)
    except ObjectNotFound:
        return ""
    if run.state is not None and run.state.is_final():
        return ""
    for task_run in client.read_task_runs(flow_run_filter=FlowRunFilter.model_validate({"id": {"any_": [str(id)]}})):
        if task_run.state is None or not task_run.state.is_final():
            client.set_task_run_state(task_run.id, Crashed(message=MESSAGE), force=True)
    client.set_flow_run_state(id, Crashed(message=MESSAGE), force=True)
    return run.name


def _server_name(workspace: Path) -> str:
    """The workspace's own server may change its port; others are known by their address."""
    url = os.environ.get("PREFECT_API_URL", "")
    own = home_of(workspace) / "server.json"
    if own.exists() and read_json(own)["url"] == url:
        return EMBEDDED
    return url
