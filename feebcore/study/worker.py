"""`python -m feebcore.study.worker REQUESTS REPLIES`: a warm worker, which builds one stage after another.

Requests are lines of JSON on one pipe, replies (events, then the outcome) lines of JSON on another; torch and what else a stage
imports is imported once. The output of a stage goes to log.txt of its folder. The process ends when the pipe of requests closes,
that is when its parent is gone for whatever reason; a stage that is at work then has some seconds to save.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from feebcore.artifacts import Workspace, read_artifact
from feebcore.errors import ArtifactError, FeebError
from feebcore.recipe import from_resolved
from feebcore.run.build import build
from feebcore.run.plan import plan_stage
from feebcore.run.worker import end_when


def main(requests: int, replies: int) -> int:
    for handle in (requests, replies):
        os.set_inheritable(handle, False)  # not for what a stage starts
    todo: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with open(requests, "rb") as stream:
            for line in stream:
                todo.put(line)
        todo.put(b"")

    end_when(read, and_group=True)
    with open(replies, "w", encoding="utf-8", buffering=1) as stream:

        def reply(row: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):  # the parent has gone; the stage is asked to stop
                stream.write(json.dumps(row) + "\n")

        while request := todo.get():
            _serve(json.loads(request), reply)
            _tidy()
    return 0


def _serve(request: dict[str, Any], reply: Any) -> None:
    with contextlib.ExitStack() as stack:
        try:
            recipe = from_resolved(request["recipe"], Path(request["path"]), changes=request["changes"])
            built = {}
            for stage, path in request["built"].items():
                artifact = read_artifact(Path(path))
                if artifact is None:
                    raise ArtifactError(f"input {stage} at {path} is not finished")
                built[stage] = artifact
            stage, workspace = request["stage"], Workspace(request["workspace"])
            own = plan_stage(recipe, stage, workspace, built).fingerprint
            if own != request["fingerprint"]:
                raise ArtifactError(f"{recipe.name}: what {stage} depends on has changed since it was planned ({request['fingerprint']}, now {own})")
            artifact = build(
                recipe,
                stage,
                workspace,
                built,
                lambda row: reply({"event": row}),
                in_process=True,
                before=lambda place: stack.enter_context(_output_to(place / "log.txt")),
            )
            reply({"path": str(artifact.path)})
        except Exception as error:
            traceback.print_exc()
            message = str(error) if isinstance(error, FeebError) else f"{type(error).__name__}: {error}"
            reply({"error": type(error).__name__, "message": message})


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """stdout and stderr, also those of C code and of processes that are started, go to this file."""
    old = os.dup(1), os.dup(2)
    sys.stdout.flush(), sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1), os.dup2(log, 2)
    try:
        yield
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os.dup2(old[0], 1), os.dup2(old[1], 2)
        for handle in (log, *old):
            os.close(handle)


def _tidy() -> None:
    """Leave nothing of a run to the next: compiled code (after eight models of one class torch would compile no more), memory."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        sys.modules["torch"].cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
