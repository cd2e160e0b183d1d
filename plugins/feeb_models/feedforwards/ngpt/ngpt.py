"""Feedforward of nGPT (arXiv:2410.01131, section 2.4): W2 (s_u W1 x * silu(sqrt(C) s_v W3 x)).

Rows of W1 and W3 and columns of W2 have unit norm; s_u and s_v are learned, one gain per hidden unit. x has unit norm, so
W3 x is of the size of 1 / sqrt(C), where silu would be nearly linear: hence sqrt(C).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from feeb_models.feedforwards.dense.dense import norm_before_out
from feeb_models.feedforwards.options import GatedConfig
from feeb_models.normalized_linear import LearnedScale, NormalizedLinear, NormalizedResidualLinear
from feebcore.model.context import ForwardContext
from feebcore.model.parts import FeedforwardPart
from feebcore.protocols import BuildContext


class NgptFeedforward(FeedforwardPart):
    def __init__(self, config: GatedConfig, context: BuildContext) -> None:
        super().__init__()
        hidden = config.width(context.d_model)
        self.hidden = NormalizedLinear(context.d_model, 2 * hidden, bias=False)
        self.row_blocks = {"hidden.weight": (hidden, hidden)}
        self.out = NormalizedResidualLinear(hidden, context.d_model, bias=False)
        self.gate_gain = LearnedScale(hidden, context.d_model**0.5, 1.0)
        self.value_gain = LearnedScale(hidden, 1.0, 1.0)
        self.norm = norm_before_out(config, hidden)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        gate_BTF, value_BTF = self.hidden(x_BTC).chunk(2, dim=-1)
        return self.out(self.norm(F.silu(self.gate_gain() * gate_BTF) * self.value_gain() * value_BTF).to(x_BTC.dtype))
