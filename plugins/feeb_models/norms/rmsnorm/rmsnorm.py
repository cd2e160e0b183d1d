"""RMSNorm (arXiv:1910.07467), computed in fp32 and returned in the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.norms.rmsnorm import RMSNormConfig
from feebcore.protocols import BuildContext


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain, over the last dimension, of width context.d_model."""

    def __init__(self, config: RMSNormConfig, context: BuildContext) -> None:
        super().__init__()
        self.eps = config.eps
        self.gain = nn.Parameter(torch.ones(context.d_model)) if config.learnable else None

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel instead of five
            return F.rms_norm(x.float(), x.shape[-1:], None if self.gain is None else self.gain.float(), self.eps).to(x.dtype)
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y if self.gain is None else y * self.gain).to(x.dtype)
