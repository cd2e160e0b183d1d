"""Helpers to run `feeb` as users do, and two things that many tests share, because making them takes seconds: a migrated Prefect
database, and a running Prefect server for tests that do not look at a server's own life."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
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
    own = {"PREFECT_PROFILES_PATH": str(HERE / "none.toml")}  # whoever runs the tests may have a profile
    return kept | own | {"DO_NOT_TRACK": "1", "NO_COLOR": "1", "PYTHONFAULTHANDLER": "1"} | extra


class Feeb:
    """The command line in a workspace of its own."""

    def __init__(self, workspace: Path, server: int = 0) -> None:
        self.workspace = workspace
        self.server = server  # pid of the Prefect server where it outlives this workspace's runs

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What Prefect's database says once no process of this workspace is left, and the server has written all that it was sent."""
        self.wait_for_no_process()
        with contextlib.closing(sqlite3.connect(self.workspace / ".prefect" / "prefect.db")) as database:
            if self.server:
                wait_until_quiet(database, self.server)
            return database.execute(query).fetchall()

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """One request to this workspace's Prefect server, with all that it asks of a client."""
        home = self.workspace / ".prefect"
        token = base64.b64encode((home / "secret").read_bytes()).decode()
        headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json", "Prefect-Csrf-Client": "test"}
        if method != "GET":
            headers["Prefect-Csrf-Token"] = self.api("GET", "/csrf-token?client=test")["token"]
        url = json.loads((home / "server.json").read_text())["url"] + path
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return json.loads(answer.read() or "null")

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


def wait_until_quiet(database: sqlite3.Connection, server: int, seconds: float = 0.7, limit: float = 20.0) -> None:
    """Until nobody has written to the database, and the server has slept, for so many seconds on end."""
    version, quiet_since, deadline = None, time.monotonic(), time.monotonic() + limit
    while time.monotonic() - quiet_since < seconds:
        assert time.monotonic() < deadline, "the Prefect server does not come to rest"
        seen = database.execute("PRAGMA data_version").fetchone()
        running = (Path("/proc") / str(server) / "stat").read_text().rpartition(")")[2].split()[0] == "R"
        if seen != version or running:
            version, quiet_since = seen, time.monotonic()
        time.sleep(0.05)


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


def copy_database(database: Path, home: Path) -> None:
    home.mkdir(parents=True)
    for file in database.parent.glob("prefect.db*"):
        shutil.copy(file, home / file.name)


@pytest.fixture
def own_server(feeb: Feeb, migrated_database: Path) -> Feeb:
    """`feeb` in a workspace whose Prefect database exists, so that its server starts in two or three seconds."""
    copy_database(migrated_database, feeb.workspace / ".prefect")
    return feeb


HOLDER = """
import sys
from feeb_pipelines.server import connect
with connect(sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="session")
def shared_server(migrated_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """(home, pid) of an embedded server that a client of its own keeps alive until the last test."""
    workspace = tmp_path_factory.mktemp("shared-server")
    copy_database(migrated_database, workspace / ".prefect")
    command = [sys.executable, "-c", HOLDER, str(workspace)]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment())
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    yield workspace / ".prefect", json.loads((workspace / ".prefect" / "server.json").read_text())["pid"]
    client.stdin.close()
    client.wait(20)
    Feeb(workspace).wait_for_no_process()


@pytest.fixture
def served(feeb: Feeb, shared_server: tuple[Path, int]) -> Feeb:
    """`feeb` in an empty workspace whose `.prefect` is that of the shared server, emptied of the runs of other tests."""
    home, server = shared_server
    feeb.workspace.mkdir(parents=True)
    (feeb.workspace / ".prefect").symlink_to(home)
    feeb.server = server
    with contextlib.closing(sqlite3.connect(home / "prefect.db", timeout=20)) as database, database:
        wait_until_quiet(database, server)
        for table in ("artifact", "artifact_collection", "log", "task_run_state", "task_run", "flow_run_state", "flow_run"):
            database.execute(f"delete from {table}")
    return feeb
