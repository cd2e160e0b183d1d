"""What surrounds a run and is not feeb's: proxies, silent servers, the current folder, terminals."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from feeb_pipelines.cli.options import visible
from feeb_pipelines.server import ServerError, client_environment, connect, ready
from feebcore.data.downloader import Downloader, Item
from feebcore.errors import DataError
from feebcore.proxies import HIDDEN_PROXIES, unusable_proxies

from .conftest import RECIPE, Feeb, clean_environment


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def refusing() -> Iterator[int]:
    """The port of a server that answers everything with the status that the path begins with, as /401/api."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.send_response(int(self.path.split("/")[1]))
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def asked(url: str, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PREFECT_API_URL", url)
    began = time.monotonic()
    with pytest.raises(ServerError) as caught, connect(workspace) as connection:
        ready(workspace, connection)
    assert time.monotonic() - began < 20  # seconds; ten of them for Prefect's import on a busy machine
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_api_that_does_not_answer_is_one_sentence(tmp_path: Path, silent: int, refusing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    for port in (free, silent):
        message = asked(f"http://127.0.0.1:{port}/api", tmp_path, monkeypatch)
        assert f"nobody answers at http://127.0.0.1:{port}/api (PREFECT_API_URL" in message
        assert "unset the variable to use the workspace's own server" in message
    assert "status 401); set PREFECT_API_AUTH_STRING" in asked(f"http://127.0.0.1:{refusing}/401/api", tmp_path, monkeypatch)
    assert "no Prefect API answers at" in asked(f"http://127.0.0.1:{refusing}/404/api", tmp_path, monkeypatch)
    assert "nobody answers" in asked("no address", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.e2e
def test_the_command_says_so_without_a_traceback(feeb: Feeb, silent: int) -> None:
    done = feeb("run", RECIPE, PREFECT_API_URL=f"http://127.0.0.1:{silent}/api")
    assert done.returncode == 1
    assert done.stderr.startswith("feeb: nobody answers at")
    assert "Traceback" not in done.stderr + done.stdout


PROXY = {"ALL_PROXY": "socks5://127.0.0.1:1080", "http_proxy": "gopher://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


def test_proxies_that_cannot_be_opened_are_hidden_from_local_clients_and_said_by_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HIDDEN_PROXIES, raising=False)
    for name, value in PROXY.items():
        monkeypatch.setenv(name, value)
    wanted = ["ALL_PROXY", "http_proxy"]
    if unusable_proxies() != wanted:
        pytest.skip("socksio is installed here: SOCKS proxies can be used")
    changes = client_environment(tmp_path, "http://127.0.0.1:1/api")
    assert [changes[name] for name in wanted] == [None, None]
    assert "HTTPS_PROXY" not in changes
    for name in wanted:
        monkeypatch.delenv(name)
    monkeypatch.setenv(HIDDEN_PROXIES, changes[HIDDEN_PROXIES] or "")
    with pytest.raises(DataError, match=r"the proxy in ALL_PROXY, http_proxy cannot be used: for SOCKS `pip install socksio`"):
        Downloader(retries=0).fetch([Item("http://127.0.0.1:9/x", "x")], tmp_path, lambda *_: None)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_run_with_a_socks_proxy_and_modules_beside_it(served: Feeb, tmp_path: Path) -> None:
    """Nothing remote is wanted; every process that is started must import Python's own modules, not those of the current folder."""
    for name in ("random", "types", "token", "queue", "struct", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')")
    environment = clean_environment(FEEB_WORKSPACE=str(served.workspace), ALL_PROXY=PROXY["ALL_PROXY"])
    command = [sys.executable, "-P", *served.command("run", RECIPE)[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_every_listing_prints_on_a_terminal_of_few_characters(encoding: str, tmp_path: Path) -> None:
    environment = clean_environment(FEEB_WORKSPACE=str(tmp_path), PYTHONIOENCODING=encoding, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    code = "import sys\nfrom feeb_pipelines.cli import main\nmain(sys.argv[1:])"
    for arguments in (["parts"], ["show", "stage", "é"], ["plan", str(RECIPE)], ["--help"], ["parts", "optimizers"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, timeout=60, env=environment, check=False)
        assert b"Traceback" not in done.stderr + done.stdout, (arguments, done.stderr.decode(errors="replace"))
        done.stdout.decode(encoding)


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert visible("a\x1b[31mred\x07\r\nb\tc\x9b2J\u202eé") == "a\\x1b[31mred\\x07\\r\nb\tc\\x9b2J\\u202eé"
