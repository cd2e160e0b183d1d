"""`feeb ui`: the Prefect UI of this workspace."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import WorkspaceOption


def ui(*, open: Annotated[bool, Parameter(negative="--no-open", help="Open the UI in a browser.")] = True, workspace: WorkspaceOption = None) -> int:
    """Start the Prefect UI and API of this workspace until Ctrl-C. Deployments and workers connect to this server.

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
        from feeb_pipelines.runs import reconcile_runs

        for name in reconcile_runs(space.root):
            print(f"run {name} was killed; now marked as Crashed")
        print(f"Prefect for {space.root}: {connection.ui}")
        print(f"for deployments and workers: export PREFECT_API_URL={connection.url}", flush=True)
        if not connection.embedded:
            return 0
        if open:
            import webbrowser

            webbrowser.open(connection.ui)
        print("press Ctrl-C to stop", flush=True)
        stop.wait()
    return 0


COMMANDS = (ui,)
