"""Options shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Set = Annotated[
    list[str],
    Parameter(name="--set", help="Override a recipe key: --set pretrain.max_steps=100. May be repeated.", negative=(), show_default=False),
]
Plugin = Annotated[list[str], Parameter(name="--plugin", help="Load a single-file plugin, e.g. ./idea.py. May be repeated.", negative=(), show_default=False)]
WorkspaceOption = Annotated[Path | None, Parameter(name=["--workspace", "-w"], help="Workspace folder. Default: FEEB_WORKSPACE, else ./data.")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=(), show_default=False)]
