"""The base classes that block parts share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class ResidualLinear(nn.Linear):
    """A linear map whose result is added to the stream. Initializations make it smaller the deeper the model is."""


class Position(nn.Module):
    """Where a token stands. A part overrides what it needs; all of it left out is `none`.

    positions_BT: [B,T] or [1,T] int64, or None for 0..T-1 in every row.
    """

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        """The embedded tokens with their place added."""
        return stream_BTC

    def prepare(self, length: int, positions_BT: Tensor | None) -> Any:
        """What `rotate` needs, made once a forward pass."""
        return None

    def rotate(self, x_BTHD: Tensor, prepared: Any) -> Tensor:
        """Queries or keys with their place turned in."""
        return x_BTHD

    def also_rotate(self, head_dim: int) -> None:
        """Called by an attention when it is made, if the heads that it rotates are not as wide as the model's head_dim."""

    def bias(self, length: int, num_keys: int) -> Tensor | None:
        """[H,T,S] fp32, added to the scores of `length` queries, of which the last stands at the last of `num_keys` keys.

        Distances in tokens are enough: what a token sees is one document, whose tokens stand side by side."""
        return None


def rows_of(table_PD: Tensor, length: int, positions_BT: Tensor | None) -> Tensor:
    """The table's rows at these positions, [T,D] or [B,T,D]; a slice, no gather, where positions are 0..T-1."""
    return table_PD[:length] if positions_BT is None else F.embedding(positions_BT, table_PD)
