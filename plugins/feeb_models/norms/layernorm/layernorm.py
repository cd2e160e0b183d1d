"""LayerNorm (arXiv:1607.06450), computed in fp32 and returned in the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.norms.layernorm import LayerNormConfig
from feebcore.protocols import BuildContext


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * gain + shift, over the last dimension, of width context.d_model."""

    def __init__(self, config: LayerNormConfig, context: BuildContext) -> None:
        super().__init__()
        self.dim, self.eps = (context.d_model,), config.eps
        self.gain = nn.Parameter(torch.ones(context.d_model)) if config.learnable else None
        self.shift = nn.Parameter(torch.zeros(context.d_model)) if config.learnable and config.bias else None

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = (None if p is None else p.float() for p in (self.gain, self.shift))
        return F.layer_norm(x.float(), self.dim, gain, shift, self.eps).to(x.dtype)
