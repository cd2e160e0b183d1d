"""Data order `shuffled`: a new permutation every epoch."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.DataOrderSpec(
    "shuffled",
    build=f"{__name__}.shuffled:ShuffledOrder",
    summary="A new permutation each epoch, computed per index (Feistel network).",
    reference="Black & Rogaway 2002",
)
