"""Softmax attention with H query heads and G key/value heads: multi-head, grouped-query, multi-query, sliding windows."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

import feebcore as feeb
from feeb_models.attentions.options import AttentionConfig, check_groups


class MultiHeadConfig(AttentionConfig):
    value_residual: Literal["none", "constant", "learned"] = Field(
        "none", description="mix the first layer's values into later ones (arXiv:2410.17897): by halves, or with two learned weights per layer"
    )
    value_embeddings: bool = Field(False, description="add a learned vector per token, from a separate table per layer, to the values")

    def kv_heads(self, num_heads: int) -> int:
        """Key/value heads for so many query heads."""
        return num_heads

    def window_of(self, layer: int) -> int:
        """Tokens that a query of this layer sees; 0: all."""
        return 0

    def rotates(self, layer: int) -> bool:
        """Whether the position encoding is applied to queries and keys of this layer."""
        return True


class MultiQueryConfig(MultiHeadConfig):
    def kv_heads(self, num_heads: int) -> int:
        return 1


class GroupedQueryConfig(MultiHeadConfig):
    num_kv_heads: int = Field(2, ge=1, description="key/value heads")

    def kv_heads(self, num_heads: int) -> int:
        return self.num_kv_heads

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.num_kv_heads, num_heads)


class WindowConfig(MultiHeadConfig):
    example: ClassVar[dict[str, Any]] = {"window": 4}
    window: int = Field(128, ge=1, description="tokens that a query sees, itself among them")
    num_kv_heads: int | None = Field(None, ge=1, description="key/value heads; default num_heads")

    def kv_heads(self, num_heads: int) -> int:
        return self.num_kv_heads or num_heads

    def window_of(self, layer: int) -> int:
        return self.window

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        check_groups(self.kv_heads(num_heads), num_heads)


class LocalGlobalConfig(WindowConfig):
    example: ClassVar[dict[str, Any]] = {"window": 4, "pattern": "LG"}
    pattern: str = Field("LLLLLG", pattern="^[LG]+$", description="one letter per layer, repeated: L sees `window` tokens, G all")
    rotate_global: bool = Field(True, description="apply the position encoding to queries and keys of G layers; false: arXiv:2501.18795")

    def is_local(self, layer: int) -> bool:
        return self.pattern[layer % len(self.pattern)] == "L"

    def window_of(self, layer: int) -> int:
        return self.window if self.is_local(layer) else 0

    def rotates(self, layer: int) -> bool:
        return self.is_local(layer) or self.rotate_global


BUILD = f"{__name__}.grouped_query:GroupedQueryAttention"

PARTS = (
    feeb.AttentionSpec(
        "mha",
        MultiHeadConfig,
        build=BUILD,
        summary="Multi-head causal attention.",
        reference="arXiv:1706.03762",
        equation="q, k, v = rot(W_q x), rot(W_k x), W_v x      H heads of width D each\ny = W_o [att(q_h, k_h, v_h)]_h",
    ),
    feeb.AttentionSpec(
        "gqa",
        GroupedQueryConfig,
        build=BUILD,
        summary="Grouped-query attention: several query heads share a key/value head.",
        reference="arXiv:2305.13245",
        equation="as mha with G = num_kv_heads key and value heads:\ny = W_o [att(q_h, k_g, v_g)]_h,   g = ⌊h G / H⌋",
    ),
    feeb.AttentionSpec(
        "mqa",
        MultiQueryConfig,
        build=BUILD,
        summary="Multi-query attention: all query heads share one key/value head.",
        reference="arXiv:1911.02150",
        since="1.1",
        equation="y = W_o [att(q_h, k, v)]_h      one k and one v for all heads",
    ),
    feeb.AttentionSpec(
        "sliding_window",
        WindowConfig,
        build=BUILD,
        summary="Sliding-window attention: each token sees the last `window` tokens.",
        reference="arXiv:2004.05150",
        since="1.1",
        equation="as gqa (G = H unless num_kv_heads), att over the s with t − window < s ≤ t only",
    ),
    feeb.AttentionSpec(
        "local_global",
        LocalGlobalConfig,
        build=BUILD,
        summary="Alternating sliding-window (local) and full (global) attention layers, as in Gemma.",
        reference="arXiv:2408.00118",
        since="1.1",
        equation="layer l, letter = pattern[l mod length of pattern]:\nL: as sliding_window;   G: att over all s ≤ t, without rot if rotate_global is false",
    ),
)
