"""The Prefect server that a workspace owns, or the one that the user's Prefect settings name.

`connect(workspace)` makes sure that a server runs and points this process at it. The embedded one keeps everything in
`<workspace>/.prefect` and belongs to a detached guard process (server_guard.py), which stops it once no client is left:

    clients.lock   every client holds a shared flock on it; the guard may have it exclusively only when none is left
    guard.lock     held by the guard for as long as it lives
    start.lock     held while a client looks for a server or starts one
    server.json    {"pid", "guard", "url", "ui", "started"} of the server; server.log its output
    secret         user:password that every request to its API must bear; only the owner of the folder can read it
    port           of the last server; the next one takes it again, so that addresses stay valid

Locks die with their holders, so a server is reaped whatever happened to whoever started it. This module imports no
Prefect: the environment must say where the server is before Prefect is imported.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from feebcore.errors import FeebError
from feebcore.files import explain, is_locked, locked, read_json
from feebcore.proxies import HIDDEN_PROXIES, unusable_proxies

START_LIMIT = 120.0
"""Seconds that a first start may take: on a cold disk the imports alone can take half a minute."""

ANSWER_LIMIT = 4.0
"""Seconds that another server has to answer one request."""

LEAST_DISK = 256 * 1024
"""Free bytes below which a server that ended is taken to have ended for want of them."""

_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerError(FeebError):
    """The embedded server did not start, or nobody answers at the address of another."""


@dataclass(frozen=True)
class Connection:
    """Where Prefect's API is. url: of the API; ui: of the pages; source: what names it, '' where the workspace owns it."""

    url: str
    ui: str
    source: str = ""

    @property
    def embedded(self) -> bool:
        return not self.source


def home_of(workspace: Path) -> Path:
    return Path(workspace).absolute() / ".prefect"


@contextlib.contextmanager
def connect(
    workspace: Path, tell: Callable[[str], None] | None = None, wait: bool = True, limit: float = START_LIMIT, until_exit: bool = False
) -> Iterator[Connection]:
    """Use the workspace's server while the block runs, starting it when there is none.

    Where Prefect's settings (PREFECT_API_URL, a profile, prefect.toml) name another server, that one is used and nothing is
    started. tell: gets a sentence when waiting takes more than 3 s. wait: False returns as soon as the address is known; call
    `ready` before using it. The server is let go and the environment restored when the block ends, or with `until_exit` when
    the process does: Prefect sends its last log lines and task states at interpreter exit. Raises ServerError when the server
    does not answer within `limit` seconds.
    """
    home = home_of(workspace)
    url, source = configured_api()
    if url and not is_own(home, url):
        connection = Connection(url, url.rstrip("/").removesuffix("/api"), source)
        if wait:
            ready(workspace, connection)
        yield connection
        return
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)  # the database, the secret and the results are the user's own
        client = os.open(home / "clients.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise explain(error, home) from error
    try:
        fcntl.flock(client, fcntl.LOCK_SH)  # from here on the guard lets the server live
        with locked(home / "start.lock"):
            connection = _running(home) or _start(home, limit)
        with _environment(client_environment(home, connection.url), keep=until_exit):
            if wait:
                ready(workspace, connection, tell, limit)
            yield connection
    finally:
        if not until_exit:
            os.close(client)


def ready(workspace: Path, connection: Connection, tell: Callable[[str], None] | None = None, limit: float = START_LIMIT) -> None:
    """Wait until the server answers. Raises ServerError when it does not, or refuses this process."""
    if not connection.embedded:
        _check_reachable(connection)
        return
    home = home_of(workspace)
    started = told = time.monotonic()
    while not _answers(connection.url):
        now = time.monotonic()
        if not is_locked(home / "guard.lock"):
            _refuse_full_disk(home)
            raise ServerError(f"the Prefect server of this workspace ended while starting; log {home / 'server.log'}:\n{_log_tail(home)}")
        if now - started > limit:
            raise ServerError(f"the Prefect server of this workspace did not answer within {limit:.0f} s; log {home / 'server.log'}:\n{_log_tail(home)}")
        if tell and now - told > 3.0:
            tell(f"waiting for the Prefect server to start ({now - started:.0f} s; the first start makes its database)")
            told = now + 7.0
        time.sleep(0.05)


def configured_api() -> tuple[str, str]:
    """(address, what names it) of the API that the user's Prefect settings choose; ('', '') where they choose none.

    Prefect answers this itself, but its import takes seconds: it is asked only where a file of settings could name an address.
    """
    if url := os.environ.get("PREFECT_API_URL", ""):
        return url, "PREFECT_API_URL"
    for file in _settings_files():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.search(_NAMES_AN_ADDRESS, file.read_text()):
                from prefect.settings import get_current_settings

                _refresh_prefect()
                if url := get_current_settings().api.url or "":
                    return url, "`prefect config view` shows where it is set"
                break
    return "", ""


_NAMES_AN_ADDRESS = re.compile(r"(?im)prefect_api_url|^\s*\[(tool\.prefect\.)?api\]|^\s*(tool\.prefect\.)?api\s*[.=]")


def _settings_files() -> list[Path]:
    own = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    profiles = Path(os.environ.get("PREFECT_PROFILES_PATH") or own / "profiles.toml").expanduser()
    return [Path(".env"), Path("prefect.toml"), Path("pyproject.toml"), profiles]


def is_own(home: Path, url: str) -> bool:
    """Whether the address is that of the workspace's own server, which may have to be started again: `feeb ui` told users to export it."""
    with contextlib.suppress(OSError):
        port = (home / "port").read_text()
        return url.rstrip("/") in (f"http://127.0.0.1:{port}/api", f"http://localhost:{port}/api")
    return False


def read_secret(home: Path) -> str | None:
    """What a client of the embedded server must present; None before its first start."""
    with contextlib.suppress(FileNotFoundError):
        return (home / "secret").read_text()
    return None


def keep_alive(workspace: Path) -> None:
    """Let the workspace's own server live for as long as this process does, where this process talks to it."""
    home = home_of(workspace)
    if is_own(home, configured_api()[0]):
        with contextlib.suppress(OSError):
            fcntl.flock(os.open(home / "clients.lock", os.O_RDWR), fcntl.LOCK_SH | fcntl.LOCK_NB)


def client_environment(home: Path, url: str) -> dict[str, str | None]:
    """Environment of a process that uses the embedded server; None removes a variable."""
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"]))
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_API_KEY": None,
        "PREFECT_API_AUTH_STRING": read_secret(home),
        "PREFECT_PROFILE": None,
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_PLUGINS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        **dict.fromkeys(hidden := unusable_proxies()),
        HIDDEN_PROXIES: ",".join(hidden) or None,
    }


def _check_reachable(connection: Connection) -> None:
    """One request to a server that the user has named, with the user's own settings of proxies, certificates and passwords."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    _refresh_prefect()
    place = f"{connection.url} ({connection.source})"
    if unusable := unusable_proxies():
        raise ServerError(f"the proxy in {', '.join(unusable)} cannot be used for {place}: for SOCKS `pip install socksio`, or unset the variable")
    try:
        with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: ANSWER_LIMIT, PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
            client.read_flow_runs(limit=1)
    except PrefectHTTPStatusError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise ServerError(
                f"the Prefect server at {place} refuses this user (status {status}); set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY for Prefect Cloud"
            ) from error
        raise ServerError(f"no Prefect API answers at {place} (status {status}); the address usually ends in /api") from error
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        advice = "start that server, or unset the variable" if connection.source == "PREFECT_API_URL" else "start that server, or choose another profile"
        raise ServerError(f"nobody answers at {place}; {advice} to use the workspace's own server") from error


@contextlib.contextmanager
def _environment(changes: dict[str, str | None], keep: bool) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        if not keep:
            _apply(before)


def _apply(changes: dict[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    _refresh_prefect()


def _refresh_prefect() -> None:
    if "prefect.context" in sys.modules:  # Prefect read its settings already: a notebook, or a test
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()


def _running(home: Path) -> Connection | None:
    """The server that a living guard has announced."""
    if not is_locked(home / "guard.lock") or not (home / "server.json").exists():
        return None
    info = read_json(home / "server.json")
    return Connection(info["url"], info["ui"])


def _start(home: Path, limit: float) -> Connection:
    """Start a guard, detached from this process and its terminal, and wait until it announces an address."""
    (home / "server.json").unlink(missing_ok=True)
    with open(home / "guard.log", "wb") as log:
        guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "feeb_pipelines.server_guard", str(home)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=home,
        )
    started = time.monotonic()
    while (connection := _running(home)) is None:
        if guard.poll() is not None or time.monotonic() - started > limit:
            _refuse_full_disk(home)
            text = (home / "guard.log").read_text(errors="replace").strip()
            raise ServerError(f"the guard of the workspace's Prefect server did not start: {text or 'no message'}")
        time.sleep(0.02)
    return connection


def is_serving(home: Path) -> bool:
    """Whether the embedded server has a living guard, which ends with it."""
    return is_locked(home / "guard.lock")


def _answers(url: str) -> bool:
    try:
        with _NO_PROXY.open(f"{url}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _refuse_full_disk(home: Path) -> None:
    """The server's own log says nothing of it: it could not be written either."""
    if shutil.disk_usage(home).free < LEAST_DISK:
        raise explain(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), home)


def _log_tail(home: Path) -> str:
    try:
        return "\n".join((home / "server.log").read_text(errors="replace").strip().splitlines()[-15:])
    except OSError:
        return ""
