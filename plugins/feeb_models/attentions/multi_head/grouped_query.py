"""Causal attention with H query heads and G key/value heads of width D; G = H is multi-head attention, G = 1 multi-query.

    q, k, v = W x;  q, k = rotate(norm(q)), rotate(norm(k));  y = W_out softmax(q k^T / sqrt(D)) v

One matrix makes q, k and v: on two CPU cores that is faster than three. With a window w, token t sees t - w + 1 to t.
"""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions.multi_head import MultiHeadConfig
from feeb_models.attentions.multi_head.value_residual import make_value_mixing
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext


class GroupedQueryAttention(AttentionPart):
    """Number of key/value heads, window and rotation are what the options say of the layer."""

    def __init__(self, config: MultiHeadConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = context.num_heads, config.kv_heads(context.num_heads)
        self.head_dim, self.logit_softcap = context.head_dim, config.logit_softcap
        self.window, self.rotates = config.window_of(context.layer), config.rotates(context.layer)
        q_rows, kv_rows = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        self.qkv = nn.Linear(context.d_model, q_rows + 2 * kv_rows, bias=config.bias)
        self.row_blocks = {"qkv.weight": (q_rows, kv_rows, kv_rows)}
        self.out = ResidualLinear(self.num_heads * self.head_dim, context.d_model, bias=config.bias)
        self.q_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.values = make_value_mixing(config, context, self.num_kv_heads * self.head_dim)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        H, G = self.num_heads, self.num_kv_heads
        q_BTHD, k_BTGD, v_BTGD = self.qkv(x_BTC).view(B, T, H + 2 * G, self.head_dim).split([H, G, G], dim=2)
        q_BTHD, k_BTGD = self.q_norm(q_BTHD).to(v_BTGD.dtype), self.k_norm(k_BTGD).to(v_BTGD.dtype)
        if self.rotates:
            q_BTHD, k_BTGD = context.rotate(q_BTHD), context.rotate(k_BTGD)
        if self.values is not None:
            v_BTGD = self.values(v_BTGD, context)
        k_BGSD, v_BGSD = context.update(k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2))
        y_BHTD = context.attend(q_BTHD.transpose(1, 2), k_BGSD, v_BGSD, self.logit_softcap, self.window)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, H * self.head_dim))

    def extra_flops(self, length: int) -> tuple[float, float]:
        per_pair = 4.0 * self.num_heads * self.head_dim  # q k^T and weights v
        window = min(self.window or length, length)
        return per_pair * length**2, per_pair * (length * window - window**2 / 2)  # all T^2; those the mask leaves

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim * 4
