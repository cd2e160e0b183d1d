"""Blocks that multiply, norm or leave out the stream r. a is attention, m the feedforward; every norm has its own gain."""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.blocks.basic import Make
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext


class Product(nn.Module):
    """r + a(x) m(x), x = norm(r)."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make) -> None:
        super().__init__()
        self.norm, self.attention, self.feedforward = make_norm(), make_attention(), make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return stream_BTC + self.attention(x_BTC, context) * self.feedforward(x_BTC, context)


class NoStream(Product):
    """a(x) + m(x), x = norm(r)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return self.attention(x_BTC, context) + self.feedforward(x_BTC, context)


class Multiplied(nn.Module):
    """y = r a(norm(r)) or r a2(norm(r)) + a(norm(r)), with a and a2 two attentions; then y + m(norm(y)). Or so with the
    feedforward: y = r + a(norm(r)); then y m(norm(y)) or y m2(norm(y)) + m(norm(y)).

    The stream is scaled once a block and channel, so over L blocks it grows or shrinks exponentially, which the last norm
    hides until its eps is reached: 12 blocks of width 192 without shift, drawn with deviation 0.02, give a stream of exactly 0 and no
    gradient. Initialization fan_in keeps the factors near 1.
    """

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make, attention_factor: bool, shift: bool) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(), make_attention()
        self.feedforward_norm, self.feedforward = make_norm(), make_feedforward()
        self.attention_factor, self.shift = attention_factor, shift
        if shift and attention_factor:
            self.second_attention = make_attention()
        elif shift:
            self.second_feedforward = make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        if not self.attention_factor:
            stream_BTC = stream_BTC + self.attention(x_BTC, context)
            y_BTC = self.feedforward_norm(stream_BTC)
            if self.shift:
                return stream_BTC * self.second_feedforward(y_BTC, context) + self.feedforward(y_BTC, context)
            return stream_BTC * self.feedforward(y_BTC, context)
        if self.shift:
            stream_BTC = stream_BTC * self.second_attention(x_BTC, context) + self.attention(x_BTC, context)
        else:
            stream_BTC = stream_BTC * self.attention(x_BTC, context)
        return stream_BTC + self.feedforward(self.feedforward_norm(stream_BTC), context)


class TwoNorms(nn.Module):
    """What the blocks below are made of."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(), make_attention()
        self.feedforward_norm, self.feedforward = make_norm(), make_feedforward()


class NormedResidual(TwoNorms):
    """y = x + a(x), x = norm(r); then y + m(norm(y))."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = x_BTC + self.attention(x_BTC, context)
        return y_BTC + self.feedforward(self.feedforward_norm(y_BTC), context)


class AttentionThroughFeedforward(TwoNorms):
    """r + m(norm(r + a(norm(r))))."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        y_BTC = stream_BTC + self.attention(self.attention_norm(stream_BTC), context)
        return stream_BTC + self.feedforward(self.feedforward_norm(y_BTC), context)


class NormedBranch(TwoNorms):
    """x + m(norm(y)), x = norm(r), y = r + a(x)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = stream_BTC + self.attention(x_BTC, context)
        return x_BTC + self.feedforward(self.feedforward_norm(y_BTC), context)


class SumOfNorms(TwoNorms):
    """y + m(x + norm(y)), x = norm(r), y = r + a(x)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = stream_BTC + self.attention(x_BTC, context)
        return y_BTC + self.feedforward(x_BTC + self.feedforward_norm(y_BTC), context)


def build_product(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Product(make_attention, make_feedforward, make_norm)


def build_no_stream(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return NoStream(make_attention, make_feedforward, make_norm)


def build_multiplied_attention(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Multiplied(make_attention, make_feedforward, make_norm, attention_factor=True, shift=False)


def build_affine_attention(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Multiplied(make_attention, make_feedforward, make_norm, attention_factor=True, shift=True)


def build_multiplied_feedforward(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Multiplied(make_attention, make_feedforward, make_norm, attention_factor=False, shift=False)


def build_affine_feedforward(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Multiplied(make_attention, make_feedforward, make_norm, attention_factor=False, shift=True)


def build_normed_residual(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return NormedResidual(make_attention, make_feedforward, make_norm)


def build_attention_through_feedforward(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return AttentionThroughFeedforward(make_attention, make_feedforward, make_norm)


def build_normed_branch(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return NormedBranch(make_attention, make_feedforward, make_norm)


def build_sum_of_norms(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return SumOfNorms(make_attention, make_feedforward, make_norm)
