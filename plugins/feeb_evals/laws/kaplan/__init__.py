"""Law `kaplan`: no irreducible loss; a power of the sum of two terms."""

from __future__ import annotations

import feebcore as feeb
from feebcore.scaling.options import RolloutOptions

PART = feeb.LawSpec(
    "kaplan",
    RolloutOptions,
    build=f"{__name__}.kaplan:KaplanLaw",
    summary="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D: a straight line in logarithms, with no irreducible loss.",
    reference="arXiv:2001.08361",
)
