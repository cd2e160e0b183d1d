"""The usual residual block."""

from __future__ import annotations

from torch import Tensor

from feebcore.config import PartConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart
from feebcore.protocols import BuildContext


class PreNorm(BlockPart):
    """x += attention(norm(x)); x += feedforward(norm(x))."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention_norm, self.attention = context.make_norm(), context.make_attention()
        self.feedforward_norm, self.feedforward = context.make_norm(), context.make_feedforward()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.dropout(self.attention(self.attention_norm(stream_BTC), context))
        return stream_BTC + self.dropout(self.feedforward(self.feedforward_norm(stream_BTC), context))
