"""`python -m feebcore.run.worker FOLDER PIPE LOCK`: runs one stage in a process of its own, as one rank of several perhaps.

The folder has request.json and recipe.json; the outcome goes to result.json and the exit status. Of several ranks only
the first writes it, and events.jsonl; another one says in rank-N.json why it failed. The process, and every process it
starts, ends when the pipe closes, that is when the parent is gone for whatever reason.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feebcore.artifacts import StageOutput
from feebcore.run.processes import outcome_name

SECONDS_TO_SAVE = 9.5
"""Seconds between the request to stop and the end."""


def end_when(gone: Callable[[], None], and_group: bool) -> None:
    """Ask this process to stop once `gone` returns, and kill it SECONDS_TO_SAVE seconds later, with its process group where it leads one.

    One SIGTERM and no more (PR_SET_PDEATHSIG would be another): a second one means 'at once', and nothing would be saved.
    """

    def watch() -> None:
        gone()
        os.kill(os.getpid(), signal.SIGTERM)  # a chance to save
        threading.Event().wait(SECONDS_TO_SAVE)
        os.killpg(os.getpgid(0), signal.SIGKILL) if and_group else os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def end_with_pipe(pipe: int) -> None:
    """End when the other end of `pipe` closes."""

    def gone() -> None:
        while os.read(pipe, 1):
            pass

    end_when(gone, and_group=True)


class RankOutput(StageOutput):
    """The output of a rank that writes no files of the stage: its log goes to its own stdout, its progress nowhere."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.stop_requested = False
        self.content_patterns = ()
        self.runs = {}
        self._last = {}

    def log(self, text: str) -> None:
        print(text, flush=True)

    def event(self, kind: str, **fields: Any) -> None:
        """Rank 0 publishes."""

    def close(self) -> None:
        """Nothing is open."""


def main(folder: Path, pipe: int, lock: int) -> int:
    for handle in (pipe, lock):
        os.set_inheritable(handle, False)  # not for what the stage starts
    end_with_pipe(pipe)
    from feebcore.artifacts import read_artifact
    from feebcore.errors import ArtifactError, FeebError, Interrupted
    from feebcore.files import read_json, write_json
    from feebcore.recipe import from_resolved
    from feebcore.run.build import run_stage
    from feebcore.run.plan import require_unchanged

    rank = int(os.environ.get("RANK", 0))
    out = RankOutput(folder) if rank else StageOutput(folder)
    try:
        request = read_json(folder / "request.json")
        recipe = from_resolved(read_json(folder / "recipe.json"), folder / "recipe.json")
        inputs = {}
        for name, path in request["inputs"].items():
            artifact = read_artifact(Path(path))
            if artifact is None:
                raise ArtifactError(f"input {name} at {path} is not finished")
            inputs[name] = artifact
        require_unchanged(recipe, request["stage"], inputs, request["identity"])
        metrics = run_stage(recipe, request["stage"], inputs, out)
        if not rank:
            write_json(folder / "result.json", {"metrics": metrics, "content": list(out.content_patterns)})
        return 0
    except Exception as error:
        when, known = time.time(), isinstance(error, FeebError)
        traceback.print_exc()
        message = str(error) if known else f"{type(error).__name__}: {error}"
        outcome = {"error": type(error).__name__, "message": message, "traceback": "" if known else traceback.format_exc(), "time": when}
        with contextlib.suppress(OSError, FeebError):
            write_json(folder / outcome_name(rank), outcome)
        return 130 if isinstance(error, Interrupted) else 1
    finally:
        sys.stdout.flush()
        out.close()


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    if code == 1 and "RANK" in os.environ:  # at once: threads may wait for ranks that wait for this one
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
