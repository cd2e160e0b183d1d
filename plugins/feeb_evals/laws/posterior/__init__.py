"""Law `posterior`: Chinchilla's form with intervals that hold for few runs and far predictions."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class PosteriorConfig(feeb.PartConfig):
    """How predictions are checked."""

    rollouts: bool = Field(
        True, description="predict the runs of the top factor of 3.2 and of 10 in FLOPs from the cheaper ones, and widen intervals by the errors"
    )


PART = feeb.LawSpec(
    "posterior",
    PosteriorConfig,
    build=f"{__name__}.posterior:PosteriorLaw",
    summary="L = E + A / N^alpha + B / D^beta by a grid posterior (variable projection); intervals hold seed noise, prior and rollout errors.",
    reference="arXiv:2203.15556, arXiv:2603.22339",
)
