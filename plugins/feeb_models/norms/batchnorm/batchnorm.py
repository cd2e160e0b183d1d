"""Batch normalization (arXiv:1502.03167) over rows and positions: a control that shows what leaks when statistics do.

A position's result in training depends on later positions, other documents and other rows, so the training loss is not
that of a language model. Evaluation uses running statistics, which are causal, and so scores differently.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.norms.batchnorm import BatchNormConfig
from feebcore.protocols import BuildContext


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * gain + shift, mean and var of each channel over all other dimensions; fp32 inside.

    The running statistics are persistent buffers; a pass that is computed again for its gradient counts twice in them.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, config: BatchNormConfig, context: BuildContext) -> None:
        super().__init__()
        dim = context.d_model
        self.eps, self.momentum = config.eps, config.momentum
        self.gain = nn.Parameter(torch.ones(dim)) if config.learnable else None
        self.shift = nn.Parameter(torch.zeros(dim)) if config.learnable else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        if self.training:
            over = tuple(range(x.ndim - 1))
            mean, var = y.mean(over), y.var(over, correction=0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        else:
            mean, var = self.running_mean, self.running_var
        y = (y - mean) * torch.rsqrt(var + self.eps)
        if self.gain is not None and self.shift is not None:
            y = y * self.gain + self.shift
        return y.to(x.dtype)
