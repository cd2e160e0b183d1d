"""Law `data_constrained`: what repeated epochs are worth."""

from __future__ import annotations

import feebcore as feeb
from feebcore.scaling.options import RolloutOptions

PART = feeb.LawSpec(
    "data_constrained",
    RolloutOptions,
    build=f"{__name__}.data_constrained:DataConstrainedLaw",
    summary="Chinchilla's form in effective N and D: tokens seen again are worth less with every epoch, parameters in excess of the unique tokens too.",
    reference="arXiv:2305.16264",
)
