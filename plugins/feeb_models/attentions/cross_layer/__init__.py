"""Keys and values shared by neighboring layers."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.attentions.options import AttentionConfig, check_groups


class CrossLayerConfig(AttentionConfig):
    kv_share_layers: int = Field(2, ge=1, description="number of adjacent layers that share the keys and values of the first of them")
    num_kv_heads: int | None = Field(None, ge=1, description="key/value heads; default num_heads")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.num_kv_heads or num_heads, num_heads)


PART = feeb.AttentionSpec(
    "cross_layer",
    CrossLayerConfig,
    build=f"{__name__}.cross_layer:CrossLayerAttention",
    summary="Cross-layer attention: neighboring layers share the keys and values of the first of them, and their cache.",
    reference="arXiv:2405.12981",
    since="1.1",
    equation="q = rot(W_q x_l);   k, v = rot(W_k x_j), W_v x_j  with x_j and matrices of layer j = kv_share_layers ⌊l / kv_share_layers⌋\n"
    "y = W_o [att(q_h, k_g, v_g)]_h      g as in gqa, G = H unless num_kv_heads",
)
