"""The embedded server: shared by its clients, gone without them, however they went."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from feeb_pipelines.server import ServerError, connect, home_of
from feeb_pipelines.server_guard import allowed_hosts, server_environment

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
    with connect(tmp_path / "data", wait=False) as connection:
        assert (connection.url, connection.ui, connection.embedded) == ("http://127.0.0.1:9/api", "http://127.0.0.1:9", False)
    assert not (tmp_path / "data").exists()


@contextlib.contextmanager
def answering(status: int | None) -> Iterator[str]:
    """An address where something answers every request with this status; None: it accepts and is silent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        held = []
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                held.append(client)
                if status is not None:
                    client.recv(65536)
                    client.sendall(f"HTTP/1.1 {status} No\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
                    client.close()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.parametrize(
    ("status", "message"),
    [(0, "nobody answers at {}"), (None, "nobody answers at {}"), (401, "{} .*PREFECT_API_AUTH_STRING"), (404, "no Prefect API answers at {}")],
)
def test_a_named_server_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, message: str) -> None:
    with answering(status) if status != 0 else contextlib.nullcontext("http://127.0.0.1:9/api") as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        began = time.monotonic()
        with pytest.raises(ServerError, match=message.format(url)) as caught, connect(tmp_path / "data"):
            pass
    assert "PREFECT_API_URL" in str(caught.value)
    assert time.monotonic() - began < 10
    assert not (tmp_path / "data").exists()


@pytest.mark.e2e
def test_a_server_that_a_profile_names_is_used(feeb: Feeb) -> None:
    feeb.workspace.mkdir()
    (feeb.workspace / "profiles.toml").write_text('active = "far"\n[profiles.far]\nPREFECT_API_URL = "http://127.0.0.1:9/api"\n')
    done = feeb("ui", "--no-open", PREFECT_PROFILES_PATH=str(feeb.workspace / "profiles.toml"))
    assert done.returncode == 1
    assert done.stderr.startswith("feeb: nobody answers at http://127.0.0.1:9/api"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (feeb.workspace / ".prefect").exists()


def test_the_users_own_settings_of_a_server_are_kept(tmp_path: Path) -> None:
    first = server_environment(
        tmp_path, 4200, {"PREFECT_API_KEY": "k", "PREFECT_API_URL": "https://far", "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "https://lab.org:8"}
    )
    assert "PREFECT_API_KEY" not in first
    assert first["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert allowed_hosts(first) == ["127.0.0.1", "localhost", "lab.org"]
    assert first["PREFECT_SERVER_API_AUTH_STRING"] == (tmp_path / "secret").read_text() == server_environment(tmp_path, 1, {})["PREFECT_SERVER_API_AUTH_STRING"]
    mine = {"PREFECT_SERVER_API_AUTH_STRING": "me:word", "PREFECT_API_DATABASE_CONNECTION_URL": "postgresql+asyncpg://lab"}
    assert server_environment(tmp_path, 1, mine).items() >= mine.items()
    assert (tmp_path / "secret").read_text() == "me:word"
    (tmp_path / "secret").chmod(0o644)
    assert server_environment(tmp_path, 1, {})["PREFECT_SERVER_API_AUTH_STRING"] != "me:word", "others may have read it"


def status_of(url: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str]]:
    request = urllib.request.Request(url, b"{}" if method == "POST" else None, {k.replace("_", "-"): v for k, v in headers.items()}, method=method)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}


@pytest.mark.e2e
def test_only_who_has_the_secret_is_let_in(shared_server: tuple[Path, int]) -> None:
    home, _ = shared_server
    url = json.loads((home / "server.json").read_text())["url"]
    token = base64.b64encode((home / "secret").read_bytes()).decode()
    good, wrong = f"Basic {token}", "Basic " + base64.b64encode(b"feeb:guess").decode()
    assert status_of(f"{url}/admin/version", Authorization=good)[0] == 200
    assert status_of(f"{url}/admin/version")[0] == status_of(f"{url}/admin/version", Authorization=wrong)[0] == 401
    assert status_of(f"{url}/flows/", "POST", Content_Type="application/json")[0] in (401, 403)
    assert status_of(f"{url}/flows/", "POST", Authorization=good, Content_Type="application/json")[0] == 403, "no CSRF token"
    ask = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type,authorization"}
    status, headers = status_of(f"{url}/flows/", "OPTIONS", Origin="http://evil.example", **ask)
    assert (status, "access-control-allow-origin" in headers) == (400, False)
    own = url.removesuffix("/api")
    assert status_of(f"{url}/flows/", "OPTIONS", Origin=own, **ask)[1]["access-control-allow-origin"] == own
    assert status_of(f"{url}/admin/version", Authorization=good, Host="evil.example")[0] == 400
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "secret").stat().st_mode & 0o777 == (home / "prefect.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.e2e
def test_guard_and_server_end_together_feeb_ui_says_so_and_takes_the_address_again(own_server: Feeb) -> None:
    address = ""
    for victim, survivor in (("guard", "pid"), ("pid", "guard")):
        ui = own_server.start("ui", "--no-open", **({"PREFECT_API_URL": address} if address else {}))  # as it told its user to set
        assert ui.stdout is not None
        line = wait_until(lambda: re.search(r"PREFECT_API_URL=(\S+)", ui.stdout.readline()), 60, "feeb ui printed no address")  # noqa: B023
        assert address in ("", line[1])
        address = line[1]
        info = json.loads((home_of(own_server.workspace) / "server.json").read_text())
        assert healthy(address)
        os.kill(info[victim], signal.SIGKILL)
        wait_until(lambda: info[survivor] not in own_server.processes(), 10, f"{survivor} outlived {victim}")  # noqa: B023
        output, _ = ui.communicate(timeout=20)
        assert ui.returncode == 1
        assert "the Prefect server has ended" in output


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
def test_a_server_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    home = home_of(tmp_path / "data")
    home.mkdir(parents=True)
    (home / "prefect.db").write_text("this is no database, it is a text file of some length\n" * 50)
    with pytest.raises(ServerError, match=r"server\.log"), connect(tmp_path / "data"):
        pass
    Feeb(tmp_path / "data").wait_for_no_process(15)
