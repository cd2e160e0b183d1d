"""`python -m feebcore.stages.worker FOLDER PIPE`: runs one stage in a process of its own.

The folder has request.json and recipe.json; the outcome goes to result.json and the exit status. The process, and
every process it starts, ends when the pipe closes, that is when the parent is gone for whatever reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path


def end_with_parent(pipe: int) -> None:
    """Ask this process to stop once the other end of `pipe` closes, and kill its group after 9.5 s.

    One SIGTERM and no more (PR_SET_PDEATHSIG would be another): a second one means 'at once', and nothing would be saved.
    """

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)  # a chance to save
        threading.Event().wait(9.5)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def alone(folder: Path) -> None:
    """Wait until no other worker is at this folder: one whose parent was killed may still be saving, for some seconds."""
    handle = os.open(folder, os.O_RDONLY)  # stays open, and locked, until this process ends
    with contextlib.suppress(OSError):  # a file system without locks on folders
        fcntl.flock(handle, fcntl.LOCK_EX)


def main(folder: Path, pipe: int) -> int:
    end_with_parent(pipe)
    from feebcore.artifacts import StageOutput, read_artifact
    from feebcore.errors import ArtifactError, FeebError, Interrupted
    from feebcore.files import read_json, write_json
    from feebcore.recipe import from_resolved
    from feebcore.registry import use_registry
    from feebcore.stages.base import stop_on_signals

    alone(folder)
    out = StageOutput(folder)
    try:
        (folder / "result.json").unlink(missing_ok=True)  # of a worker that had to be waited for
        request = read_json(folder / "request.json")
        recipe = from_resolved(read_json(folder / "recipe.json"), folder / "recipe.json")
        inputs = {}
        for name, path in request["inputs"].items():
            artifact = read_artifact(Path(path))
            if artifact is None:
                raise ArtifactError(f"input {name} at {path} is not finished")
            inputs[name] = artifact
        entry = recipe.stages[request["stage"]]
        with use_registry(recipe.registry), stop_on_signals(out):
            metrics = entry.spec.load()(entry.section, inputs, out)
        write_json(folder / "result.json", {"metrics": json.loads(json.dumps(metrics or {})), "content": list(out.content_patterns)})
        return 0
    except Exception as error:
        traceback.print_exc()
        message = str(error) if isinstance(error, FeebError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError, FeebError):
            write_json(folder / "result.json", {"error": type(error).__name__, "message": message})
        return 130 if isinstance(error, Interrupted) else 1
    finally:
        sys.stdout.flush()
        out.close()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
