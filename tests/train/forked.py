"""Processes that begin with torch imported: all are forks of one server, which has imported it once for the whole test session.

For processes of the tests themselves; what is started as users start it pays for its imports as theirs does.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ["small_run", "torch._dynamo", "torch.distributed.fsdp"]


def start(function: Callable[..., Any], *arguments: Any, log: Path | None = None, environment: Mapping[str, str] = {}) -> BaseProcess:
    """`function(*arguments)` in a process of its own, with `environment` added to this one's; its output goes to `log`, or nowhere."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_run, args=(log or os.devnull, dict(os.environ) | environment, function, arguments))
    process.start()
    return process


def _run(log: Path | str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    with open(log, "wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
    torch.set_num_threads(1)
    function(*arguments)
