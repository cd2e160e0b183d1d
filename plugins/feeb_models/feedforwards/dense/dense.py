"""Channel mixing: W2 f(W1 x), F hidden width. With `norm_before_out` W2 reads RMSNorm(f(W1 x)) instead."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.feedforwards.options import FeedforwardConfig, GatedConfig
from feeb_models.norms.rmsnorm import RMSNormConfig
from feeb_models.norms.rmsnorm.rmsnorm import RMSNorm
from feebcore.model.context import ForwardContext
from feebcore.model.parts import FeedforwardPart, ResidualLinear
from feebcore.protocols import BuildContext

GELU_SLOPE = 2 * math.sqrt(2 / math.pi)


class Feedforward(FeedforwardPart):
    """W2 f(W1 x); a subclass says what f is."""

    def __init__(self, config: FeedforwardConfig, context: BuildContext) -> None:
        super().__init__()
        width = config.width(context.d_model)
        self.hidden = nn.Linear(context.d_model, width, bias=config.bias)
        self.out = ResidualLinear(width, context.d_model, bias=config.bias)
        self.activation = self.make_activation(width)
        self.norm = norm_before_out(config, width)

    def make_activation(self, width: int) -> Callable[[Tensor], Tensor]:
        raise NotImplementedError

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return self.out(self.norm(self.activation(self.hidden(x_BTC))))


class GatedFeedforward(FeedforwardPart):
    """W2 (f(W1 x) * W3 x), W1 and W3 in one matrix; a subclass says what f is."""

    def __init__(self, config: GatedConfig, context: BuildContext) -> None:
        super().__init__()
        width = config.width(context.d_model)
        self.hidden = nn.Linear(context.d_model, 2 * width, bias=config.bias)
        self.row_blocks = {"hidden.weight": (width, width)}
        self.out = ResidualLinear(width, context.d_model, bias=config.bias)
        self.norm = norm_before_out(config, width)

    def activation(self, x_BTF: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        gate_BTF, value_BTF = self.hidden(x_BTC).chunk(2, dim=-1)
        return self.out(self.norm(self.activation(gate_BTF) * value_BTF))


class AffineGelu(nn.Module):
    """gelu(scale * x + shift), one scale and one shift per hidden unit; the plain GELU at first."""

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
"""By the name of the dense part: the activation, and whether it gates a second product."""


class Gelu(Feedforward):
    def make_activation(self, width: int) -> Callable[[Tensor], Tensor]:
        return gelu


class Relu(Feedforward):
    def make_activation(self, width: int) -> Callable[[Tensor], Tensor]:
        return torch.relu


class ReluSquared(Feedforward):
    def make_activation(self, width: int) -> Callable[[Tensor], Tensor]:
        return relu_squared


class AffineGeluFeedforward(Feedforward):
    def make_activation(self, width: int) -> Callable[[Tensor], Tensor]:
        return AffineGelu(width)


class Swiglu(GatedFeedforward):
    def activation(self, x_BTF: Tensor) -> Tensor:
        return F.silu(x_BTF)


class Geglu(GatedFeedforward):
    def activation(self, x_BTF: Tensor) -> Tensor:
        return gelu(x_BTF)


def norm_before_out(config: FeedforwardConfig, width: int) -> nn.Module:
    return RMSNorm(RMSNormConfig(), BuildContext(d_model=width)) if config.norm_before_out else nn.Identity()
