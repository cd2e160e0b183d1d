"""A scaled embedding table."""

from __future__ import annotations

import math

from torch import Tensor

from feeb_models.embeddings.scaled import ScaledConfig
from feeb_models.embeddings.standard.standard import StandardEmbedding
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext


class ScaledEmbedding(StandardEmbedding):
    """s E[token]. The table itself is what a tied head shares, without s."""

    def __init__(self, config: ScaledConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.scale = config.scale or math.sqrt(context.d_model)

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:  # type: ignore[override]
        return self.scale * super().forward(tokens_BT, context)
