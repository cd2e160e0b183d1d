"""Attention of nGPT."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class NgptConfig(feeb.PartConfig):
    init_value: float = Field(1.0, gt=0, description="initial value of the learned gains on normalized queries and keys")


PART = feeb.AttentionSpec(
    "ngpt",
    NgptConfig,
    build=f"{__name__}.ngpt:NgptAttention",
    summary="Attention of nGPT: queries and keys of unit norm with learned gains, from matrices of unit rows.",
    reference="arXiv:2410.01131",
    since="1.1",
    breaks=("relative_positions_shift_invariant", "output_projection_is_last"),  # gains come after the rotation; W_out is normed as it is used
    equation="q = s u(rot_t(W_q x)), k = s u(rot_s(W_k x)), y = W_out [softmax(√D q kᵀ) v]_h, u(x) = x / |x|\n"
    "s learned; rows of W_q, W_k, W_v and columns of W_out have unit norm",
)
