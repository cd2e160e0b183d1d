"""Pre-norm residual block."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.BlockSpec(
    "prenorm",
    build=f"{__name__}.prenorm:PreNorm",
    summary="Pre-norm: attention, then feedforward, each on the normalized stream.",
    reference="arXiv:2002.04745",
    equation="u = r + attn(norm(r));   r' = u + mlp(norm(u))",
)
