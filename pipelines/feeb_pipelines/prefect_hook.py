"""Prefect's start-up hook: lets `prefect deployment run pretrain` mean `pretrain/pretrain`.

Prefect wants FLOW/DEPLOYMENT, and here the two names are equal. The hook completes a bare name in the arguments of
`prefect … deployment run` and says so; it does nothing else. It is enabled by `[tool.prefect.plugins]` in
pyproject.toml, therefore in this repository only. It imports no Prefect but the marker, and no feeb.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from prefect.plugins import register_hook

GLOBAL_WITH_VALUE = {"--profile", "-p"}
RUN_WITH_VALUE = {
    "--id",
    "--job-variable",
    "-jv",
    "--param",
    "-p",
    "--params",
    "--start-in",
    "--start-at",
    "--tag",
    "--watch-interval",
    "--watch-timeout",
    "--flow-run-name",
}


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect before its command line reads the arguments."""
    os.environ["PREFECT_PLUGINS_ENABLED"] = "false"  # done: a worker would call this again where it cannot, and log tracebacks
    if os.path.basename(sys.argv[0]) not in ("prefect", "__main__.py"):
        return
    position = bare_name(sys.argv[1:])
    if position is None:
        return
    name = sys.argv[position + 1]
    sys.argv[position + 1] = f"{name}/{name}"
    print(f"feeb: {name!r} is taken as the deployment {name}/{name}", file=sys.stderr)


def bare_name(arguments: list[str]) -> int | None:
    """The index of the bare deployment name in `[options] deployment run [options] NAME …`; None when there is none."""
    words = _words(arguments, 0, GLOBAL_WITH_VALUE, 2)
    if [arguments[i] for i in words] != ["deployment", "run"]:
        return None
    rest = arguments[words[1] + 1 :]
    if any(a in ("--id", "--help", "-h") or a.startswith("--id=") for a in rest):
        return None
    found = _words(arguments, words[1] + 1, RUN_WITH_VALUE, 1)
    if not found or "/" in arguments[found[0]]:
        return None
    return found[0]


def _words(arguments: list[str], start: int, with_value: set[str], count: int) -> list[int]:
    """Indices of the first `count` arguments from `start` that are neither options nor values of options."""
    found, skip = [], False
    for index in range(start, len(arguments)):
        argument = arguments[index]
        if skip:
            skip = False
        elif argument.startswith("-") and argument != "-":
            skip = argument in with_value
        else:
            found.append(index)
            if len(found) == count:
                break
    return found
