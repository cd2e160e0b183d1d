"""Law `tied`: Chinchilla's form with one exponent for parameters and tokens."""

from __future__ import annotations

import feebcore as feeb
from feebcore.scaling.options import RolloutOptions

PART = feeb.LawSpec(
    "tied",
    RolloutOptions,
    build=f"{__name__}.tied:TiedLaw",
    summary="L = E + A / N^alpha + B / D^alpha: one exponent fewer, for few runs; the best N and D both grow as the root of compute.",
    reference="arXiv:2305.16264",
)
