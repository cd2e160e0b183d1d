"""`python -m feeb_pipelines.server_guard HOME`: runs a workspace's Prefect server for as long as it has clients.

The guard is detached from whoever started it. The server is its child and dies with it (PDEATHSIG, and a pipe for
systems without). Once a second the guard tries the exclusive flock on clients.lock; two successes in a row mean that
no client is left, however it went, and the server is stopped while the lock is held, so that a client which comes at
that moment waits and then starts a new one.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from feebcore.data.downloader import PROXIES

PERIOD = 0.5
GRACE = 1.5  # seconds without a client after which the server is stopped
LOG_LIMIT = 4 << 20


def guard(home: Path) -> int:
    lock = os.open(home / "guard.lock", os.O_RDWR | os.O_CREAT, 0o644)
    if not _take(lock, seconds=3.0):
        print("another guard is running")
        return 1
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
        env=server_environment(home, port),
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
    temporary = home / f".server.json.{os.getpid()}"
    temporary.write_text(json.dumps(info) + "\n")
    os.replace(temporary, home / "server.json")


def server_environment(home: Path, port: int) -> dict[str, str]:
    """The server's environment: none of the user's Prefect settings nor proxies, everything in `home`, nothing sent anywhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_") and name.lower() not in PROXIES}
    return kept | {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_PLUGINS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


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

    gc.enable()

    listener = socket.socket(fileno=descriptor)
    config = uvicorn.Config(create_app(), log_level="warning", timeout_keep_alive=5, timeout_graceful_shutdown=2)
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
