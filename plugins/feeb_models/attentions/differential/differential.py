"""Differential attention (arXiv:2410.05258): two softmax maps per head, one subtracted from the other.

    y_h = (1 - l0) rms_norm((softmax(q1 k1^T / sqrt(D)) - l softmax(q2 k2^T / sqrt(D))) v)
    l = exp(a1 . b1) - exp(a2 . b2) + l0,    l0 = 0.8 - 0.6 exp(-0.3 layer)

num_heads counts maps, so there are half as many heads, whose values are 2 D wide: parameters, FLOPs and cache are those of
multi-head attention. The weights are written out, [B,H,T,S] in fp32: no fused kernel subtracts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from feeb_models.attentions.differential import DifferentialConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext


class DifferentialAttention(AttentionPart):
    def __init__(self, config: DifferentialConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_maps, self.head_dim, self.logit_softcap = context.num_heads, context.head_dim, config.logit_softcap
        self.start = 0.8 - 0.6 * math.exp(-0.3 * context.layer)
        width = self.num_maps * self.head_dim
        self.qkv = nn.Linear(context.d_model, 3 * width, bias=config.bias)
        self.row_blocks = {"qkv.weight": (width, width, width)}
        self.out = ResidualLinear(width, context.d_model, bias=config.bias)
        self.q_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.balance = nn.Parameter(torch.zeros(4 * self.head_dim))  # a1, b1, a2, b2
        self.norm = nn.RMSNorm(2 * self.head_dim, eps=1e-5)

    def init_weights(self, std: float, residual_std: float) -> None:
        nn.init.normal_(self.balance, std=0.1)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BTMD, k_BTMD, v_BTMD = self.qkv(x_BTC).view(B, T, 3, self.num_maps, self.head_dim).unbind(2)
        q_BTMD, k_BTMD = self.q_norm(q_BTMD).to(v_BTMD.dtype), self.k_norm(k_BTMD).to(v_BTMD.dtype)
        v_BTHE = v_BTMD.reshape(B, T, self.num_maps // 2, 2 * self.head_dim)
        k_BMSD, v_BHSE = context.update(context.rotate(k_BTMD).transpose(1, 2), v_BTHE.transpose(1, 2))
        weights_BMTS = context.weights(context.rotate(q_BTMD).transpose(1, 2), k_BMSD, self.logit_softcap)
        first_BHTS, second_BHTS = weights_BMTS.unflatten(1, (-1, 2)).unbind(2)
        y_BHTE = (first_BHTS - self.subtracted() * second_BHTS).to(v_BHSE.dtype) @ v_BHSE
        y_BHTE = (1 - self.start) * self.norm(y_BHTE.float())
        return self.out(y_BHTE.to(x_BTC.dtype).transpose(1, 2).reshape(B, T, -1))

    def subtracted(self) -> Tensor:
        """How much of the second map is taken away, a scalar."""
        a1, b1, a2, b2 = self.balance.float().view(4, -1).unbind()
        return (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + self.start

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 4.0 * length**2 * self.num_maps * self.head_dim  # q k^T and weights v
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.num_maps * self.head_dim * 4
