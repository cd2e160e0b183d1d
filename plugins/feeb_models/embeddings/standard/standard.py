"""An embedding table."""

from __future__ import annotations

from torch import Tensor, nn

from feebcore.config import PartConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import EmbeddingPart
from feebcore.protocols import BuildContext


class StandardEmbedding(nn.Embedding, EmbeddingPart):
    """E[token]. A tied head shares the table."""

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(context.vocab_size, context.d_model)

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:  # type: ignore[override]
        return nn.Embedding.forward(self, tokens_BT)
