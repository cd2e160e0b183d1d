"""`feeb`: the command line. Importing this loads nothing but the standard library: completion answers while somebody types."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cyclopts


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 success, 1 error, 2 invalid command line, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["__complete"]:
        from feeb_pipelines.cli.complete import answer

        sys.exit(answer(words[1:]))
    from feebcore.files import escape_unencodable

    escape_unencodable()
    os.environ["PYTHONSAFEPATH"] = "1"  # for every process that is started from here: a random.py in the current folder is not Python's
    sys.exit(run_command(arguments))


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status; user errors are printed, not raised."""
    from feeb_pipelines.cli.app import run_command

    return run_command(arguments)


def make_app() -> cyclopts.App:
    """The command line as an object, for completion and the documentation."""
    from feeb_pipelines.cli.app import make_app

    return make_app()


__all__ = ["main", "make_app", "run_command"]
