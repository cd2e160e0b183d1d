"""The law of Hoffmann et al., fitted by feebcore.scaling.posterior."""

from __future__ import annotations

from feebcore.scaling.posterior import CHINCHILLA, GridLaw


class PosteriorLaw(GridLaw):
    form = CHINCHILLA
