"""Attention and feedforward in parallel."""

from __future__ import annotations

from torch import Tensor

from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart
from feebcore.protocols import BuildContext


class Parallel(BlockPart):
    """x += attention(norm(x)) + feedforward(norm(x)), one norm."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.norm, self.attention, self.feedforward = context.make_norm(), context.make_attention(), context.make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTC = self.norm(stream_BTC)
        return stream_BTC + self.dropout(self.attention(x_BTC, context)) + self.dropout(self.feedforward(x_BTC, context))
