"""Differential attention."""

from __future__ import annotations

import feebcore as feeb
from feeb_models.attentions.options import AttentionConfig


class DifferentialConfig(AttentionConfig):
    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if num_heads % 2:
            raise ValueError(f"attention differential subtracts heads in pairs, but num_heads is {num_heads}; set num_heads to {num_heads + 1}")


PART = feeb.AttentionSpec(
    "differential",
    DifferentialConfig,
    build=f"{__name__}.differential:DifferentialAttention",
    summary="Differential attention: the difference of two softmax maps per head, so that what both attend to cancels.",
    reference="arXiv:2410.05258",
    since="1.1",
    equation="A_i = softmax(rot(q_i) rot(k_i)ᵀ / √D + b_i);   y_h = (1 − λ0) rms((A_2h − λ A_2h+1) v_h) * gain,   y = W_o [y_h]_h\n"
    "λ = exp(a1·b1) − exp(a2·b2) + λ0,   λ0 = 0.8 − 0.6 exp(−0.3 l);   H/2 values of width 2D",
)
