"""Feedforward of nGPT (arXiv:2410.01131, section 2.4): W2 (s_u W1 x * silu(sqrt(C) s_v W3 x)).

Rows of W1 and W3 and columns of W2 have unit norm; s_u and s_v are learned, one gain a hidden unit. x has unit norm, so
W3 x is of the size of 1 / sqrt(C), where silu would be nearly linear: hence sqrt(C).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.feedforwards import SwigluConfig
from feeb_models.feedforwards.dense import NORM_EPS
from feeb_models.norms.classic import RMSNorm
from feeb_models.sphere import LearnedScale, UnitColumns, UnitRows
from feebcore.protocols import BlockShape


class NgptFeedforward(nn.Module):
    def __init__(self, config: SwigluConfig, block: BlockShape) -> None:
        super().__init__()
        hidden = config.width(block.d_model)
        self.hidden = UnitRows(block.d_model, 2 * hidden, bias=False)
        self.out = UnitColumns(hidden, block.d_model, bias=False)
        self.gate_gain = LearnedScale(hidden, block.d_model**0.5, 1.0)
        self.value_gain = LearnedScale(hidden, 1.0, 1.0)
        self.norm = RMSNorm(hidden, NORM_EPS, learnable=True) if config.norm_before_out else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate_BTF, value_BTF = self.hidden(x_BTC).chunk(2, dim=-1)
        return self.out(self.norm(F.silu(self.gate_gain() * gate_BTF) * self.value_gain() * value_BTF).to(x_BTC.dtype))


def build_ngpt(config: SwigluConfig, block: BlockShape) -> nn.Module:
    return NgptFeedforward(config, block)
