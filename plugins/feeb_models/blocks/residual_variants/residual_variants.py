"""Blocks that multiply, norm or leave out the stream r. a is attention, m the feedforward; every norm has its own gain."""

from __future__ import annotations

from torch import Tensor

from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart
from feebcore.protocols import BuildContext


class Product(BlockPart):
    """r + a(x) m(x), x = norm(r)."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.norm, self.attention, self.feedforward = context.make_norm(), context.make_attention(), context.make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return stream_BTC + self.dropout(self.attention(x_BTC, context)) * self.dropout(self.feedforward(x_BTC, context))


class NoStream(Product):
    """a(x) + m(x), x = norm(r)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return self.dropout(self.attention(x_BTC, context)) + self.dropout(self.feedforward(x_BTC, context))


class MultipliedAttention(BlockPart):
    """y = r a(norm(r)) or r a2(norm(r)) + a(norm(r)), with a and a2 two attentions; then y + m(norm(y)). Or so with the
    feedforward: y = r + a(norm(r)); then y m(norm(y)) or y m2(norm(y)) + m(norm(y)).

    The stream is scaled once a block and channel, so over L blocks it grows or shrinks exponentially, which the last norm
    hides until its eps is reached: 12 blocks of width 192 without shift, drawn with deviation 0.02, give a stream of exactly 0 and no
    gradient. Initialization fan_in keeps the factors near 1.
    """

    attention_factor, shift = True, False

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention_norm, self.attention = context.make_norm(), context.make_attention()
        self.feedforward_norm, self.feedforward = context.make_norm(), context.make_feedforward()
        if self.shift and self.attention_factor:
            self.second_attention = context.make_attention()
        elif self.shift:
            self.second_feedforward = context.make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        if not self.attention_factor:
            stream_BTC = stream_BTC + self.dropout(self.attention(x_BTC, context))
            y_BTC = self.feedforward_norm(stream_BTC)
            if self.shift:
                return stream_BTC * self.dropout(self.second_feedforward(y_BTC, context)) + self.dropout(self.feedforward(y_BTC, context))
            return stream_BTC * self.dropout(self.feedforward(y_BTC, context))
        if self.shift:
            stream_BTC = stream_BTC * self.dropout(self.second_attention(x_BTC, context)) + self.dropout(self.attention(x_BTC, context))
        else:
            stream_BTC = stream_BTC * self.dropout(self.attention(x_BTC, context))
        return stream_BTC + self.dropout(self.feedforward(self.feedforward_norm(stream_BTC), context))


class AffineAttention(MultipliedAttention):
    """y = r a2(norm(r)) + a(norm(r)); then y + m(norm(y))."""

    shift = True


class MultipliedFeedforward(MultipliedAttention):
    """y = r + a(norm(r)); then y m(norm(y))."""

    attention_factor = False


class AffineFeedforward(MultipliedAttention):
    """y = r + a(norm(r)); then y m2(norm(y)) + m(norm(y))."""

    attention_factor, shift = False, True


class TwoNorms(BlockPart):
    """What the blocks below are made of."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention_norm, self.attention = context.make_norm(), context.make_attention()
        self.feedforward_norm, self.feedforward = context.make_norm(), context.make_feedforward()


class NormedResidual(TwoNorms):
    """y = x + a(x), x = norm(r); then y + m(norm(y))."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = x_BTC + self.dropout(self.attention(x_BTC, context))
        return y_BTC + self.dropout(self.feedforward(self.feedforward_norm(y_BTC), context))


class AttentionThroughFeedforward(TwoNorms):
    """r + m(norm(r + a(norm(r))))."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        y_BTC = stream_BTC + self.dropout(self.attention(self.attention_norm(stream_BTC), context))
        return stream_BTC + self.dropout(self.feedforward(self.feedforward_norm(y_BTC), context))


class NormedBranch(TwoNorms):
    """x + m(norm(y)), x = norm(r), y = r + a(x)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = stream_BTC + self.dropout(self.attention(x_BTC, context))
        return x_BTC + self.dropout(self.feedforward(self.feedforward_norm(y_BTC), context))


class SumOfNorms(TwoNorms):
    """y + m(x + norm(y)), x = norm(r), y = r + a(x)."""

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.attention_norm(stream_BTC)
        y_BTC = stream_BTC + self.dropout(self.attention(x_BTC, context))
        return y_BTC + self.dropout(self.feedforward(x_BTC + self.feedforward_norm(y_BTC), context))
