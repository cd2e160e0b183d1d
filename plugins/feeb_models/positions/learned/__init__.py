"""Learned absolute position embeddings."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.PositionSpec(
    "learned",
    build=f"{__name__}.learned:Learned",
    summary="Learned absolute position embeddings.",
    reference="arXiv:1705.03122",
    equation="r_t = E[token_t] + P[t]",
)
