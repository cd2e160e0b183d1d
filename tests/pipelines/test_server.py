"""The embedded server: shared by its clients, gone without them, however they went."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from feeb_pipelines.server import ServerError, connect, home_of

from .conftest import Feeb, clean_environment, wait_until

CLIENT = """
import sys, time
from feeb_pipelines.server import connect
with connect(sys.argv[1]) as connection:
    print(connection.url, flush=True)
    time.sleep(600)
"""


def client(feeb: Feeb) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", CLIENT, str(feeb.workspace)], stdout=subprocess.PIPE, text=True, env=clean_environment())
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def healthy(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_an_address_in_the_environment_is_used_and_nothing_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with connect(tmp_path / "data") as connection:
        assert (connection.url, connection.ui, connection.embedded) == ("http://127.0.0.1:9/api", "http://127.0.0.1:9", False)
    assert not (tmp_path / "data").exists()


@pytest.mark.e2e
def test_clients_share_a_server_that_outlives_the_first_and_not_the_last(own_server: Feeb) -> None:
    first, url = client(own_server)
    second, same = client(own_server)
    assert url == same
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(3)  # longer than the grace
    assert healthy(url)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    own_server.wait_for_no_process(10)
    assert not healthy(url)
    assert not (home_of(own_server.workspace) / "server.json").exists()


@pytest.mark.e2e
def test_a_server_dies_with_its_guard_and_the_next_client_gets_a_new_one(own_server: Feeb) -> None:
    process, _ = client(own_server)
    info = json.loads((home_of(own_server.workspace) / "server.json").read_text())
    os.kill(info["guard"], signal.SIGKILL)
    wait_until(lambda: info["pid"] not in own_server.processes(), 5, "the server outlived its guard")
    other, url = client(own_server)
    assert healthy(url)
    for each in (process, other):
        each.kill()
        each.wait()
    own_server.wait_for_no_process(10)


@pytest.mark.e2e
def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = home_of(tmp_path / "data")
    home.mkdir(parents=True)
    (home / "prefect.db").write_text("this is no database, it is a text file of some length\n" * 50)
    with pytest.raises(ServerError, match=r"server\.log"), connect(tmp_path / "data"):
        pass
    Feeb(tmp_path / "data").wait_for_no_process(15)
