"""Attention and feedforward in parallel."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.BlockSpec(
    "parallel",
    build=f"{__name__}.parallel:Parallel",
    summary="Attention and feedforward in parallel on one normalized stream.",
    reference="https://github.com/kingoflolz/mesh-transformer-jax",
    equation="r' = r + attn(x) + mlp(x),   x = norm(r)",
)
