"""One migrated Prefect database for all tests (making it takes seconds), and helpers to run `feeb` as users do."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = HERE / "tiny.yaml"


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without anything that names a Prefect server or a workspace."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "FEEB_"))}
    return kept | {"DO_NOT_TRACK": "1", "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"} | extra


class Feeb:
    """The command line in a workspace of its own."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-c", "from feeb_pipelines.cli import main; main()", *map(str, arguments)]

    def __call__(self, *arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = clean_environment(FEEB_WORKSPACE=str(self.workspace), **environment)
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=timeout, env=environment, cwd=ROOT, check=False)

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        environment = clean_environment(FEEB_WORKSPACE=str(self.workspace), **environment)
        return subprocess.Popen(self.command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT)

    def json(self, *arguments: object, **environment: str) -> Any:
        done = self(*arguments, "--json", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def artifacts(self) -> dict[str, dict[str, Any]]:
        return {row["stage"]: row for row in self.json("runs")}

    def processes(self) -> dict[int, str]:
        """Living processes that name this workspace in their command line or environment."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            if command and str(self.workspace).encode() in command + environment:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode()
        return found

    def wait_for_no_process(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


class Inside(Feeb):
    """The same command line called in this process: quick, for commands that start none."""

    def __call__(self, *arguments: object, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        from feeb_pipelines.cli import run_command

        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            for name in [n for n in os.environ if n.startswith(("PREFECT_", "FEEB_"))]:
                patch.delenv(name)
            for name, value in {"FEEB_WORKSPACE": str(self.workspace), "NO_COLOR": "1", **environment}.items():
                patch.setenv(name, value)
            code = run_command([*map(str, arguments)])
        return subprocess.CompletedProcess([], code, out.getvalue(), err.getvalue())


def wait_until(what: Callable[[], Any], seconds: float, why: str) -> Any:
    """Polls until `what()` is true and returns it."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, why
        time.sleep(0.05)
    return value


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Prefect database as the embedded server leaves it after its first start."""
    workspace = tmp_path_factory.mktemp("first-start")
    code = f"from feeb_pipelines.server import connect\nwith connect({str(workspace)!r}): pass"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=180, env=clean_environment())
    Feeb(workspace).wait_for_no_process()
    return workspace / ".prefect" / "prefect.db"


@pytest.fixture
def feeb(tmp_path: Path) -> Iterator[Feeb]:
    """`feeb` in an empty workspace; whatever it left running is killed by pid, and is a failure."""
    user = Feeb(tmp_path / "data")
    yield user
    try:
        user.wait_for_no_process()
    finally:
        for pid in user.processes():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def inside(tmp_path: Path) -> Inside:
    return Inside(tmp_path / "data")


@pytest.fixture
def served(feeb: Feeb, migrated_database: Path) -> Feeb:
    """The same, in a workspace whose Prefect database exists, so that its server starts in two or three seconds."""
    home = feeb.workspace / ".prefect"
    home.mkdir(parents=True)
    for file in migrated_database.parent.glob("prefect.db*"):
        shutil.copy(file, home / file.name)
    return feeb
