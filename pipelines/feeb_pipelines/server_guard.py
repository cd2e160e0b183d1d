"""`python -m feeb_pipelines.server_guard HOME`: runs a workspace's Prefect server for as long as it has clients.

The guard is detached from whoever started it. The server is its child and dies with it (PDEATHSIG, and a pipe for
systems without). Once a second the guard tries the exclusive flock on clients.lock; two successes in a row mean that
no client is left, however it went, and the server is stopped while the lock is held, so that a client which comes at
that moment waits and then starts a new one.

Whoever can use the API can run commands as this user (a deployment may name a shell script, a worker runs it). So the server
listens on 127.0.0.1 only, wants the workspace's secret with every request, answers no page of another origin, and
refuses requests that were sent to another host's name: a web site whose name is made to mean 127.0.0.1.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feebcore.proxies import PROXIES

PERIOD = 0.5
GRACE = 1.5  # seconds without a client after which the server is stopped
LOG_LIMIT = 4 << 20


def guard(home: Path) -> int:
    os.umask(0o077)
    lock = os.open(home / "guard.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if not _take(lock, seconds=3.0):
        print("another guard is running")
        return 1
    for database in home.glob("prefect.db*"):
        database.chmod(0o600)
    listener = _listen(home)
    port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    reader, writer = os.pipe()  # closes when the guard ends
    log_path = home / "server.log"
    log = open(log_path, "wb" if log_path.exists() and log_path.stat().st_size > LOG_LIMIT else "ab")
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "feeb_pipelines.server_guard", "--serve", str(home), str(listener.fileno()), str(reader), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=(listener.fileno(), reader),
        env=server_environment(home, port, os.environ),
        cwd=home,
    )
    listener.close()
    os.close(reader)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    _announce(home, {"pid": server.pid, "guard": os.getpid(), "url": f"{url}/api", "ui": url, "port": port, "started": time.time()})
    try:
        _wait_for_last_client(home, server, asked)
    finally:
        _stop(server)
        (home / "server.json").unlink(missing_ok=True)
        os.close(writer)
    return 0


def _take(lock: int, seconds: float) -> bool:
    """The exclusive flock; tried more than once, since whoever asks if a guard lives holds it for an instant."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)
    return False


def _wait_for_last_client(home: Path, server: subprocess.Popen[bytes], asked: threading.Event) -> None:
    """Returns when the server ended, when asked to stop, or when no client is left; in that case holding clients.lock,
    which is released when this process ends."""
    clients = os.open(home / "clients.lock", os.O_RDWR | os.O_CREAT, 0o644)
    idle_since = None
    while server.poll() is None and not asked.wait(PERIOD):
        try:
            fcntl.flock(clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            idle_since = None
            continue
        idle_since = idle_since or time.monotonic()
        if time.monotonic() - idle_since >= GRACE:
            return
        fcntl.flock(clients, fcntl.LOCK_UN)


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        try:
            server.wait(5)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _listen(home: Path) -> socket.socket:
    """A bound loopback socket, on the port of the last time where it is free, so that bookmarks keep working."""
    last = 0
    try:
        last = int((home / "port").read_text())
    except (OSError, ValueError):
        pass
    for port in (last, 0):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()
            continue
        (home / "port").write_text(str(listener.getsockname()[1]))
        return listener
    raise SystemExit("no free port on 127.0.0.1")


def _announce(home: Path, info: dict[str, object]) -> None:
    _write(home / "server.json", json.dumps(info) + "\n")


def _write(path: Path, text: str) -> None:
    """At once, and readable by the owner only."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(0o600)
    temporary.write_text(text)
    os.replace(temporary, path)


def make_secret(home: Path, given: str | None) -> str:
    """The user's own auth string, else that of the last start, else a new one; in the file `secret` for the clients."""
    path = home / "secret"
    if given is None and path.exists() and path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o077:
        given = path.read_text()
    secret = given or f"feeb:{secrets.token_urlsafe(32)}"
    _write(path, secret)
    return secret


OF_CLIENTS = ("PREFECT_API_", "PREFECT_PROFILE", "PREFECT_UI_", "PREFECT_SERVER_UI_API_URL", "PREFECT_SERVER_API_BASE_PATH", "PREFECT__")
"""Variables that say which server the user's own commands talk to, or would move this one's address."""


def server_environment(home: Path, port: int, environment: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: everything in `home`, nothing sent anywhere, not even by the user's proxies, nobody let in but who has the
    secret. The user's own PREFECT_SERVER_* settings (a database, an auth string, allowed origins) are kept."""
    kept = {name: value for name, value in environment.items() if not name.startswith(OF_CLIENTS) or name.startswith("PREFECT_API_DATABASE_")}
    kept = {name: value for name, value in kept.items() if name.lower() not in PROXIES}
    origins = f"http://127.0.0.1:{port},http://localhost:{port}"
    defaults = {
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": kept.pop("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", origins),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": kept.pop("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    }
    return {
        **defaults,
        **kept,
        "PREFECT_SERVER_API_AUTH_STRING": make_secret(home, environment.get("PREFECT_SERVER_API_AUTH_STRING") or None),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_PLUGINS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def allowed_hosts(environment: Mapping[str, str]) -> list[str]:
    """Names by which the server may be called: this machine's, and those of the origins that the user allows."""
    origins = environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"].split(",")
    return ["127.0.0.1", "localhost", *("*" if origin.strip() == "*" else urlsplit(origin.strip()).hostname or "localhost" for origin in origins)]


LOGIN = "/feeb-login"
LOGIN_PAGE = b"""<!doctype html><title>feeb</title><script>
if (location.hash.length > 1) localStorage.setItem("prefect-password", location.hash.slice(1));
location.replace("/");
</script>"""
"""Prefect's pages keep the auth string where only a page of their own address can put it; it comes behind '#', which is never sent."""


def with_login(app: Any) -> Any:
    """The server with one page more, to which `feeb ui` opens the browser."""

    async def served(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != LOGIN:
            await app(scope, receive, send)
            return
        headers = [(b"content-type", b"text/html"), (b"cache-control", b"no-store"), (b"x-frame-options", b"DENY"), (b"referrer-policy", b"no-referrer")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": LOGIN_PAGE})

    return served


def serve(descriptor: int, pipe: int, parent: int) -> int:
    """The server itself, in the guard's child."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        return 1
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()
    gc.disable()  # the import makes many objects and no garbage: a fifth of its time goes into looking for some
    import uvicorn
    from prefect.server.api.server import create_app
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    gc.enable()
    app = TrustedHostMiddleware(with_login(create_app()), allowed_hosts=allowed_hosts(os.environ))

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=5, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _end_with(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        sys.exit(serve(*map(int, sys.argv[3:6])))
    sys.exit(guard(Path(sys.argv[1])))
