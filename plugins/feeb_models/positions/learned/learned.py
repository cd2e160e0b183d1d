"""A learned vector per position, added to the embedding."""

from __future__ import annotations

from torch import Tensor, nn

from feebcore.config import NoOptions
from feebcore.model.position import Position, rows_of
from feebcore.protocols import BuildContext


class Learned(Position):
    """stream + P[position]."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__()
        self.table = nn.Embedding(context.seq_len, context.d_model)

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        return stream_BTC + rows_of(self.table.weight, stream_BTC.shape[1], positions_BT)
