"""ALiBi."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.PositionSpec(
    "alibi",
    build=f"{__name__}.alibi:Alibi",
    summary="ALiBi: scores fall linearly with the distance.",
    reference="arXiv:2108.12409",
    since="1.1",
    equation="b_h(t, s) = −m_h (t − s),   m_h = 2^(−8h/H),  h = 1 … H;   rot = identity",
)
