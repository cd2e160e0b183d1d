"""Law `posterior`: Chinchilla's form with intervals that hold for few runs and far predictions."""

from __future__ import annotations

import feebcore as feeb
from feebcore.scaling.options import RolloutOptions

PART = feeb.LawSpec(
    "posterior",
    RolloutOptions,
    build=f"{__name__}.posterior:PosteriorLaw",
    summary="L = E + A / N^alpha + B / D^beta by a grid posterior (variable projection); intervals hold seed noise, prior and rollout errors.",
    reference="arXiv:2203.15556, arXiv:2603.22339",
)
