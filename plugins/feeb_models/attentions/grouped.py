"""Causal attention with H query heads and G key/value heads of width D; G = H is multi-head attention.

    q, k, v = W x;  q, k = rotate(norm(q)), rotate(norm(k));  y = W_out softmax(q k^T / sqrt(D)) v

One matrix makes q, k and v: on two CPU cores that is faster than three.
"""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions import GroupedQueryConfig, MultiHeadConfig
from feebcore.model.attention import attend
from feebcore.model.context import Context
from feebcore.model.parts import ResidualLinear
from feebcore.protocols import BlockShape


class GroupedQueryAttention(nn.Module):
    def __init__(self, config: MultiHeadConfig, block: BlockShape, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim, self.softcap = block.num_heads, num_kv_heads, block.head_dim, config.softcap
        self.qkv = nn.Linear(block.d_model, (self.num_heads + 2 * num_kv_heads) * self.head_dim, bias=config.bias)
        self.out = ResidualLinear(self.num_heads * self.head_dim, block.d_model, bias=config.bias)
        normed = config.qk_norm and block.make_norm
        self.q_norm = block.make_norm(self.head_dim) if normed else nn.Identity()  # type: ignore[misc]
        self.k_norm = block.make_norm(self.head_dim) if normed else nn.Identity()  # type: ignore[misc]

    def forward(self, x_BTC: Tensor, context: Context) -> Tensor:
        B, T, _ = x_BTC.shape
        H, G = self.num_heads, self.num_kv_heads
        q_BTHD, k_BTGD, v_BTGD = self.qkv(x_BTC).view(B, T, H + 2 * G, self.head_dim).split([H, G, G], dim=2)
        q_BTHD, k_BTGD = self.q_norm(q_BTHD).to(v_BTGD.dtype), self.k_norm(k_BTGD).to(v_BTGD.dtype)
        q_BTHD, k_BTGD = context.rotate(q_BTHD), context.rotate(k_BTGD)
        k_BGSD, v_BGSD = context.extend(k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2))
        y_BHTD = attend(q_BTHD.transpose(1, 2), k_BGSD, v_BGSD, context.mask_BTS, self.softcap, context.block_mask)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, H * self.head_dim))

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 4.0 * length**2 * self.num_heads * self.head_dim  # q k^T and weights v
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim * 4


def build_mha(config: MultiHeadConfig, block: BlockShape) -> nn.Module:
    return GroupedQueryAttention(config, block, block.num_heads)


def build_gqa(config: GroupedQueryConfig, block: BlockShape) -> nn.Module:
    return GroupedQueryAttention(config, block, config.num_kv_heads)
