"""Depth-weighted averages."""

from __future__ import annotations

import feebcore as feeb

PART = feeb.StackSpec(
    "denseformer",
    build=f"{__name__}.denseformer:DenseFormer",
    summary="DenseFormer: each layer reads a learned weighted sum of the outputs of all layers before it.",
    reference="arXiv:2402.02622",
    since="1.1",
    equation="x_i = B_i(y_{i−1}),   y_i = Σ_{j ≤ i} α_ij x_j,   x_0 = y_0 = r_0      α_ii = 1 and the others 0 at first",
)
