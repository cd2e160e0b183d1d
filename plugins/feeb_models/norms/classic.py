"""Normalization over the last dimension, computed in fp32 and returned in the input's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.norms import LayerNormConfig, NormConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * gain."""

    def __init__(self, dim: int, eps: float, learnable: bool) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(dim)) if learnable else None

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y if self.gain is None else y * self.gain).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * gain + shift."""

    def __init__(self, dim: int, eps: float, learnable: bool, bias: bool) -> None:
        super().__init__()
        self.dim, self.eps = (dim,), eps
        self.gain = nn.Parameter(torch.ones(dim)) if learnable else None
        self.shift = nn.Parameter(torch.zeros(dim)) if learnable and bias else None

    def forward(self, x: Tensor) -> Tensor:
        gain, shift = (None if p is None else p.float() for p in (self.gain, self.shift))
        return F.layer_norm(x.float(), self.dim, gain, shift, self.eps).to(x.dtype)


def build_rmsnorm(config: NormConfig, dim: int) -> nn.Module:
    return RMSNorm(dim, config.eps, config.learnable)


def build_layernorm(config: LayerNormConfig, dim: int) -> nn.Module:
    return LayerNorm(dim, config.eps, config.learnable, config.bias)
