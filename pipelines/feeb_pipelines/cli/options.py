"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Set = Annotated[
    list[str],
    Parameter(name="--set", help="Change a key of the recipe: --set pretrain.max_steps=100. May be repeated.", negative=(), show_default=False),
]
WorkspaceOption = Annotated[Path | None, Parameter(name=["--workspace", "-w"], help="Folder of the artifacts; default FEEB_WORKSPACE or ./data.")]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON for a program to read.", negative=(), show_default=False)]
