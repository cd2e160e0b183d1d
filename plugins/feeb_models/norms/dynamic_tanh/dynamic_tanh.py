"""Dynamic tanh (arXiv:2503.10622): squashes each value by itself, where a norm would look at the whole vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.norms.dynamic_tanh import DynamicTanhConfig
from feebcore.protocols import BuildContext


class DynamicTanh(nn.Module):
    """tanh(alpha x) * gain + shift; alpha one learned number, gain and shift one per channel. In fp32, returned in x's dtype."""

    def __init__(self, config: DynamicTanhConfig, context: BuildContext) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), config.alpha))  # one dimension, as sharded training knows no scalar parameters
        self.gain = nn.Parameter(torch.ones(context.d_model)) if config.learnable else None
        self.shift = nn.Parameter(torch.zeros(context.d_model)) if config.learnable else None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.alpha * x.float())
        if self.gain is not None and self.shift is not None:
            y = y * self.gain + self.shift
        return y.to(x.dtype)
