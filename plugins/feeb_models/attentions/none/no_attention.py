"""Nothing is added to the stream."""

from __future__ import annotations

from torch import Tensor

from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart
from feebcore.protocols import BuildContext


class NoAttention(AttentionPart):
    """0 x, so that what stands before it, a norm say, has a gradient, of zero: data-parallel training waits for one."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__()

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return 0.0 * x_BTC
