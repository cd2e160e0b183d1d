"""More, less or none of an attention: what it adds to the stream times a constant, or nothing at all."""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions import ScaledConfig
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.protocols import BlockShape


class Scaled(nn.Module):
    """scale * attention(x)."""

    def __init__(self, attention: nn.Module, scale: float) -> None:
        super().__init__()
        self.attention, self.scale = attention, scale

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return self.scale * self.attention(x_BTC, context)


class NoAttention(nn.Module):
    """0 x, so that what stands before it, a norm say, has a gradient, of zero: data-parallel training waits for one."""

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return 0.0 * x_BTC


def build_scaled(config: ScaledConfig, block: BlockShape) -> nn.Module:
    return Scaled(config.inner.build(block), config.scale)


def build_none(config: NoOptions, block: BlockShape) -> nn.Module:
    return NoAttention()
