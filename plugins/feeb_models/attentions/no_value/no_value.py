"""Attention without a value matrix: y = W_out (sum_h A_h) x, A_h = softmax(q_h k_h^T / sqrt(D)).

With identity values every head reads the same thing, so the heads' weights are summed first and one product does
(values and projections removed: arXiv:2311.01906). The weights are written out, [B,H,T,S] in fp32. x is what the
attention is given, and is cached with the keys.
"""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions.no_value import NoValueConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext


class NoValueAttention(AttentionPart):
    def __init__(self, config: NoValueConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.d_model, self.logit_softcap = context.num_heads, context.head_dim, context.d_model, config.logit_softcap
        rows = self.num_heads * self.head_dim
        self.qk = nn.Linear(context.d_model, 2 * rows, bias=config.bias)
        self.row_blocks = {"qk.weight": (rows, rows)}
        self.out = ResidualLinear(context.d_model, context.d_model, bias=config.bias) if config.projection else nn.Identity()
        self.q_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        qk = self.qk(x_BTC).view(B, T, 2, self.num_heads, self.head_dim)
        q_BTHD, k_BTHD = self.q_norm(qk[:, :, 0]).to(qk.dtype), self.k_norm(qk[:, :, 1]).to(qk.dtype)
        k_BHSD, x_B1SC = context.update(context.rotate(k_BTHD).transpose(1, 2), x_BTC.unsqueeze(1))
        weights_BTS = context.weights(context.rotate(q_BTHD).transpose(1, 2), k_BHSD, self.logit_softcap).sum(1)
        return self.out(weights_BTS.to(x_BTC.dtype) @ x_B1SC[:, 0])

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 2.0 * length**2 * (self.num_heads * self.head_dim + self.d_model)  # q k^T and (sum of weights) x
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return (self.num_heads * self.head_dim + self.d_model) * 4
