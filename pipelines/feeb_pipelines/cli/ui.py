"""`feeb ui`: Prefect's pages for this workspace."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import WorkspaceOption


def ui(*, open: Annotated[bool, Parameter(negative="--no-open", help="Open a browser.")] = True, workspace: WorkspaceOption = None) -> int:
    """Serve the history of this workspace's runs until Ctrl-C. Also what deployments and workers talk to.

    Examples:
        feeb ui
        feeb ui --no-open --workspace /tmp/try
    """
    import signal
    import threading

    from feeb_pipelines.server import connect
    from feebcore.artifacts import Workspace

    space = Workspace(workspace)
    stop = threading.Event()
    with connect(space.root, lambda text: print(text, file=sys.stderr)) as connection:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
        from feeb_pipelines.runs import settle

        for name in settle(space.root):
            print(f"run {name} was left unfinished by a kill; it is marked Crashed now")
        print(f"Prefect for {space.root}: {connection.ui}")
        print(f"for deployments and workers: export PREFECT_API_URL={connection.url}", flush=True)
        if not connection.embedded:
            return 0
        if open:
            import webbrowser

            webbrowser.open(connection.ui)
        print("Ctrl-C stops it", flush=True)
        stop.wait()
    return 0


COMMANDS = (ui,)
