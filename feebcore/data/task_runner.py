"""Work on an orchestrator's workers: the orchestrator offers task runners, a stage opens one.

The engine knows no orchestrator. Whoever runs stages may offer a way to open task runners (`offering`, around the call); a
stage that fans out opens one by kind (`open_runner`). The runner only computes: what is written, and in which
order, stays with the stage, so its ledger and its result are those of a run without fan-out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from feebcore.errors import RecipeError


class Pending(Protocol):
    """A result to come. `result` waits for it and raises what the function raised."""

    def result(self) -> Any: ...


class TaskRunner(Protocol):
    """Runs functions of importable modules elsewhere; arguments and results are plain data and numpy arrays."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Pending: ...


Opener = Callable[[str, int, str], AbstractContextManager[TaskRunner]]
"""`opener(kind, workers, address)`: kind 'threads', 'dask' or 'ray'; address '' means workers on this machine."""

_opener: ContextVar[Opener | None] = ContextVar("feeb_task_runners", default=None)


@contextmanager
def offering(opener: Opener) -> Iterator[None]:
    """Stages that run inside may open task runners through `opener`."""
    token = _opener.set(opener)
    try:
        yield
    finally:
        _opener.reset(token)


def open_runner(kind: str, workers: int, address: str, key: str) -> AbstractContextManager[TaskRunner]:
    """A task runner of the orchestrator that runs this stage. key: of the recipe, for the error when there is none."""
    opener = _opener.get()
    if opener is None:
        raise RecipeError(f"{key}: {kind} needs an orchestrator's task runner and this stage runs without one; use `feeb run`, or set {key} to none")
    return opener(kind, workers, address)
