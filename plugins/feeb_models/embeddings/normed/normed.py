"""A normalized embedding."""

from __future__ import annotations

from torch import Tensor

from feeb_models.embeddings.standard.standard import StandardEmbedding
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext


class NormedEmbedding(StandardEmbedding):
    """norm(E[token]), with the model's norm."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.norm = context.make_norm()

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:  # type: ignore[override]
        return self.norm(super().forward(tokens_BT, context))
