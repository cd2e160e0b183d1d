"""More or less of an attention: what it adds to the stream times a constant."""

from __future__ import annotations

from torch import Tensor

from feeb_models.attentions.scaled import ScaledConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart
from feebcore.protocols import BuildContext


class ScaledAttention(AttentionPart):
    """scale * attention(x)."""

    def __init__(self, config: ScaledConfig, context: BuildContext) -> None:
        super().__init__()
        self.attention, self.scale = config.inner.build(context), config.scale

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return self.scale * self.attention(x_BTC, context)
