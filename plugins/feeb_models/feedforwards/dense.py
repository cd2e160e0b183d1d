"""Channel mixing: W2 f(W1 x), F hidden width. With `norm_before_out` W2 reads RMSNorm(f(W1 x)) instead."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.feedforwards import FeedforwardConfig, SwigluConfig
from feeb_models.norms.classic import RMSNorm
from feebcore.model.parts import ResidualLinear
from feebcore.protocols import BlockShape

NORM_EPS = 1e-6
GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


class Feedforward(nn.Module):
    """W2 f(W1 x)."""

    def __init__(self, config: FeedforwardConfig, block: BlockShape, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        hidden = config.width(block.d_model)
        self.hidden = nn.Linear(block.d_model, hidden, bias=config.bias)
        self.out = ResidualLinear(hidden, block.d_model, bias=config.bias)
        self.activation = activation
        self.norm = RMSNorm(hidden, NORM_EPS, learnable=True) if config.norm_before_out else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        return self.out(self.norm(self.activation(self.hidden(x_BTC))))


class GatedFeedforward(nn.Module):
    """W2 (f(W1 x) * W3 x), W1 and W3 in one matrix."""

    def __init__(self, config: SwigluConfig, block: BlockShape, activation: Callable[[Tensor], Tensor] = F.silu) -> None:
        super().__init__()
        hidden = config.width(block.d_model)
        self.hidden = nn.Linear(block.d_model, 2 * hidden, bias=config.bias)
        self.out = ResidualLinear(hidden, block.d_model, bias=config.bias)
        self.activation = activation
        self.norm = RMSNorm(hidden, NORM_EPS, learnable=True) if config.norm_before_out else nn.Identity()

    def forward(self, x_BTC: Tensor) -> Tensor:
        gate_BTF, value_BTF = self.hidden(x_BTC).chunk(2, dim=-1)
        return self.out(self.norm(self.activation(gate_BTF) * value_BTF))


class AffineGelu(nn.Module):
    """gelu(scale * x + shift), one scale and one shift a hidden unit; the plain GELU at first."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(hidden))
        self.shift = nn.Parameter(torch.zeros(hidden))

    def forward(self, x_BTF: Tensor) -> Tensor:
        return gelu((self.scale * x_BTF + self.shift).to(x_BTF.dtype))


def gelu(x: Tensor) -> Tensor:
    """The tanh form (arXiv:1606.08415, section 2). (1 + tanh u) / 2 = sigmoid(2u), and in compiled code an exponential is
    far cheaper than tanh: 10 % of a training step of 1 M parameters on a CPU."""
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    y = x.float()
    return (y * torch.sigmoid(GELU_SLOPE * (y + 0.044715 * y * y * y))).to(x.dtype)


def relu_squared(x: Tensor) -> Tensor:
    return F.relu(x).square()


ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "gelu": (gelu, False),
    "relu": (torch.relu, False),
    "relu_squared": (relu_squared, False),
    "geglu": (gelu, True),
    "swiglu": (F.silu, True),
}
"""By the name of the dense part: the function, and whether it gates a second product."""


def build_gelu(config: FeedforwardConfig, block: BlockShape) -> nn.Module:
    return Feedforward(config, block, gelu)


def build_relu(config: FeedforwardConfig, block: BlockShape) -> nn.Module:
    return Feedforward(config, block, torch.relu)


def build_relu_squared(config: FeedforwardConfig, block: BlockShape) -> nn.Module:
    return Feedforward(config, block, relu_squared)


def build_swiglu(config: SwigluConfig, block: BlockShape) -> nn.Module:
    return GatedFeedforward(config, block)


def build_geglu(config: SwigluConfig, block: BlockShape) -> nn.Module:
    return GatedFeedforward(config, block, gelu)


def build_affine_gelu(config: FeedforwardConfig, block: BlockShape) -> nn.Module:
    return Feedforward(config, block, AffineGelu(config.width(block.d_model)))
