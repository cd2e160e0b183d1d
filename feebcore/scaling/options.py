"""Options that several laws share."""

from __future__ import annotations

from pydantic import Field

from feebcore.config import PartConfig


class RolloutOptions(PartConfig):
    """How predictions are checked."""

    rollouts: bool = Field(
        True, description="predict the runs of the top factor of 3.2 and of 10 in FLOPs from the cheaper ones, and widen intervals by the errors"
    )
