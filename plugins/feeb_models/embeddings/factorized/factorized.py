"""A factorized embedding (arXiv:1909.11942, section 3.1)."""

from __future__ import annotations

import math

from torch import Tensor, nn

from feeb_models.embeddings.factorized import FactorizedConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import EmbeddingPart, ModelPart
from feebcore.protocols import BuildContext


class FactorizedEmbedding(EmbeddingPart):
    """W E[token], E [V,R] and W [C,R]: V R + R C parameters instead of V C."""

    def __init__(self, config: FactorizedConfig, context: BuildContext) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(context.vocab_size, config.rank), _KeepsSize(config.rank, context.d_model, bias=False)

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:
        return self.up(self.table(tokens_BT))


class _KeepsSize(nn.Linear, ModelPart):
    def init_weights(self, std: float, residual_std: float) -> None:
        """Vectors come out with the standard deviation of the table, as from one table."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.in_features))
