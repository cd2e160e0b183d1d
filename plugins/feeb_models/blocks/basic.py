"""One residual block: how attention, feedforward and norms stand around the stream."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext

Make = Callable[[], nn.Module]


class PreNorm(nn.Module):
    """x += attention(norm(x)); x += feedforward(norm(x))."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(), make_attention()
        self.feedforward_norm, self.feedforward = make_norm(), make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.attention(self.attention_norm(stream_BTC), context)
        return stream_BTC + self.feedforward(self.feedforward_norm(stream_BTC), context)


class Parallel(nn.Module):
    """x += attention(norm(x)) + feedforward(norm(x)), one norm."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make) -> None:
        super().__init__()
        self.norm, self.attention, self.feedforward = make_norm(), make_attention(), make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return stream_BTC + self.attention(x_BTC, context) + self.feedforward(x_BTC, context)


def build_prenorm(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return PreNorm(make_attention, make_feedforward, make_norm)


def build_parallel(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Parallel(make_attention, make_feedforward, make_norm)
