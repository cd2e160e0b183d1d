"""The commands of `feeb` and how their errors are shown. Importing this loads no torch, no Prefect and no polars; each command imports what it uses."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import cyclopts

from feeb_pipelines.cli import artifacts, branch, compare, completion, doctor, generate, inspection, interchange, parts, plot, plugin, run, runs, sweep, ui

HELP = """Train small language models from YAML recipes: data, tokenizer, pretraining, scaling laws, SFT, RL, evaluation, report.

feeb run experiments/quickstart.yaml runs a complete recipe. Running it again reuses every finished stage and resumes unfinished ones.

Artifacts are written to the workspace: ./data, FEEB_WORKSPACE, or --workspace DIR.
"""


def make_app() -> cyclopts.App:
    """The command line as an object, for completion scripts and the documentation."""
    app = cyclopts.App(name="feeb", help=HELP, version=_version, suppress_keyboard_interrupt=False, help_format="plaintext", result_action="return_value")
    for module in (run, branch, compare, inspection, runs, plot, parts, generate, interchange, ui, doctor, completion):
        for command in module.COMMANDS:
            app.command(command, **_help(command))
    listing = cyclopts.App(name="artifacts", help="List, verify, import and remove artifacts.", help_format="plaintext")
    for command in artifacts.COMMANDS:
        listing.command(command, **_help(command))
    app.command(listing)
    plugins = cyclopts.App(name="plugin", help="Create and update plugin packages.", help_format="plaintext")
    for command in plugin.COMMANDS:
        plugins.command(command, **_help(command))
    app.command(plugins)
    sweeps = cyclopts.App(name="sweep", help="Plan, run and use scaling-law sweeps.", help_format="plaintext")
    for command in sweep.COMMANDS:
        sweeps.command(command, **_help(command))
    app.command(sweeps)
    return app


def _help(command: Callable[..., Any]) -> dict[str, str]:
    """Split a command's docstring: the description goes above its options, the examples below."""
    text, heading, examples = re.split(r"^(Examples?:)\n", inspect.getdoc(command) or "", maxsplit=1, flags=re.MULTILINE)
    paragraphs = [" ".join(p.split()) for p in text.strip().split("\n\n")]
    usage = getattr(command, "usage", None)
    return {"help": "\n\n".join(paragraphs), "help_epilogue": f"{heading}\n{examples.rstrip()}"} | ({"usage": usage} if usage else {})


def run_command(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit status; user errors are printed, not raised."""
    from feebcore.errors import FeebError, Interrupted, UsageError

    app = make_app()
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # here a reader that has gone is no error
        return result if isinstance(result, int) and not isinstance(result, bool) else 0
    except cyclopts.CycloptsError as error:
        command = " ".join(["feeb", *(error.command_chain or ())])
        print(f"feeb: {' '.join(str(error).split())} `{command} --help` shows the usage.", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"feeb: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("feeb: interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `feeb parts | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (FeebError, OSError) as error:
        if os.environ.get("FEEB_DEBUG") == "1":
            raise
        text = str(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename}: {error.strerror}"  # without a number
        print(f"feeb: {text}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def _version() -> str:
    from feebcore import __version__

    return __version__
