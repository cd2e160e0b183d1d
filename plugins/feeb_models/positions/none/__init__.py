"""No position encoding."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.PositionSpec(
    "none",
    build=f"{__name__}.no_position:NoPosition",
    summary="NoPE: no position encoding; causal masking alone gives the order.",
    reference="arXiv:2305.19466",
    equation="r_t = E[token_t],   rot = identity,   b = 0",
)
