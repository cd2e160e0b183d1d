"""`feeb ui`: the Prefect UI of this workspace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import WorkspaceOption


def ui(*, open: Annotated[bool, Parameter(negative="--no-open", help="Open the UI in a browser.")] = True, workspace: WorkspaceOption = None) -> int:
    """Start the Prefect UI and API of this workspace until Ctrl-C. Deployments and workers connect to this server.

    Examples:
        feeb ui
        feeb ui --no-open --workspace /tmp/try
    """
    import shlex
    import signal
    import threading

    from feeb_pipelines.server import ServerError, connect, home_of, is_serving
    from feebcore.artifacts import Workspace

    space = Workspace(workspace)
    home = home_of(space.root)
    stop = threading.Event()
    with connect(space.root, lambda text: print(text, file=sys.stderr)) as connection:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        from feeb_pipelines.runs import reconcile_runs, unfinished_runs

        for name in reconcile_runs(space.root):
            print(f"run {name} was killed; it is marked as ended now")
        print(f"Prefect for {space.root}: {connection.ui}")
        if not connection.embedded:
            print(f"this server is not the workspace's own ({connection.source}); it is not stopped with this command")
            return 0
        secret = shlex.quote(str(home / "secret"))
        print("for deployments and workers, in other terminals:")
        print(f"  export PREFECT_API_URL={connection.url}")
        print(f'  export PREFECT_API_AUTH_STRING="$(cat {secret})"')
        if open:
            _open_logged_in(home, connection.ui)
        print(f"the pages ask for a password once: it is the line that `cat {secret}` prints")
        print("press Ctrl-C to stop", flush=True)
        while not stop.wait(1.0):
            if not is_serving(home):
                log = home / "server.log"
                raise ServerError(f"the Prefect server has ended, killed or failed (log {log}); run feeb ui again, it takes the same address")
        if names := unfinished_runs():
            print(f"still in progress: {', '.join(names)}; the server stops when they have ended", flush=True)
    return 0


def _open_logged_in(home: Path, address: str) -> None:
    """Open the UI by way of a file that only this user can read: an address with the password would stand in the browser's arguments."""
    import base64
    import webbrowser

    from feeb_pipelines.server import read_secret
    from feeb_pipelines.server_guard import LOGIN

    page = home / "open.html"
    password = base64.b64encode((read_secret(home) or "").encode()).decode()
    page.touch(0o600)
    page.write_text(f'<meta http-equiv="refresh" content="0; url={address}{LOGIN}#{password}">\n')
    webbrowser.open(page.as_uri())


COMMANDS = (ui,)
