"""No position encoding."""

from __future__ import annotations

from feebcore.config import NoOptions
from feebcore.model.position import Position
from feebcore.protocols import BuildContext


class NoPosition(Position):
    """Position as it is, with nothing overridden."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__()
