"""Prefect's task runners, as the engine may use them: `fan_out: threads`, `dask` or `ray` of a stage.

Each unit of work is a task run of the flow, so it shows in Prefect's pages. Nothing of it is persisted or cached: what
counts is written by the stage itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from feebcore.errors import RecipeError


class _Runner:
    """A started task runner of Prefect behind the engine's protocol."""

    def __init__(self, runner: TaskRunner[Any], context: Context) -> None:
        self._runner, self._context = runner, context

    def submit(self, function: Callable[..., Any], /, *args: Any) -> PrefectFuture[Any]:
        parameters = {"function": f"{function.__module__}:{function.__name__}", "arguments": list(args)}
        return self._context.copy().run(self._runner.submit, run_unit, parameters)


@task(name="unit", task_run_name="{function}", cache_policy=NO_CACHE, persist_result=False)
def run_unit(function: str, arguments: list[Any]) -> Any:
    """Call a function by its name: a worker needs the package, and nothing has to be pickled but the result."""
    from importlib import import_module

    module, _, name = function.partition(":")
    return getattr(import_module(module), name)(*arguments)


@contextmanager
def open_task_runner(context: Context, kind: str, workers: int, address: str) -> Iterator[_Runner]:
    """A started task runner. kind: 'threads', 'dask' or 'ray'. address: of a running Dask scheduler or Ray cluster; '':
    `workers` processes on this machine. context: of the flow run, that the units belong to; a stage's own task cannot be sent to
    other processes. Raises RecipeError when the package of the kind is not installed."""
    with _make(kind, workers, address) as runner:
        yield _Runner(runner, context)


def _make(kind: str, workers: int, address: str) -> TaskRunner[Any]:
    if kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        if kind == "dask":
            from prefect_dask import DaskTaskRunner

            if address:
                return DaskTaskRunner(address=address)
            return DaskTaskRunner(cluster_kwargs={"n_workers": workers, "threads_per_worker": 1, "processes": True, "dashboard_address": "127.0.0.1:0"})
        from prefect_ray import RayTaskRunner

        return RayTaskRunner(address=address) if address else RayTaskRunner(init_kwargs={"num_cpus": workers, "include_dashboard": False})
    except ImportError as error:
        raise RecipeError(f"fan_out: {kind} needs the package prefect-{kind}; pip install 'feeb[{kind}]'") from error
