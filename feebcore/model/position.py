"""The base class of position encodings; apart from the other parts, as the context of a forward pass holds one."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from feebcore.model.counting import ModelPart


class Position(ModelPart):
    """Position encoding. A part overrides what it needs; with none of it overridden there is no encoding.

    positions_BT: [B,T] or [1,T] int64, or None for 0..T-1 in every row.
    """

    score_scale: float = 1.0
    """Factor on all attention scores in addition to 1 / sqrt(D), on dimensions that are not rotated as well."""

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        """The embedded tokens with their positions added."""
        return stream_BTC

    def prepare(self, length: int, positions_BT: Tensor | None) -> Any:
        """What `rotate` needs, made once per forward pass."""
        return None

    def rotate(self, x_BTHD: Tensor, prepared: Any) -> Tensor:
        """Queries or keys with the position encoding applied."""
        return x_BTHD

    def also_rotate(self, head_dim: int) -> None:
        """Called by an attention when it is made, if the heads that it rotates are not as wide as the model's head_dim."""

    def bias(self, length: int, num_keys: int) -> Tensor | None:
        """[H,T,S] fp32, added to the scores of `length` queries, of which the last is aligned with the last of `num_keys` keys.

        Distances in tokens are enough: a token sees one document, whose tokens are adjacent."""
        return None

    @property
    def has_bias(self) -> bool:
        """Whether scores get a `bias`."""
        return type(self).bias is not Position.bias

    def bias_of(self, head: Tensor, distance: Tensor) -> Tensor | None:
        """`bias` as a function of head and distance t - s, int64 tensors of one shape, for kernels that make scores block by block (FlexAttention)
        and so never hold [H,T,S]; None: there is no such function."""
        return None


def rows_of(table_PD: Tensor, length: int, positions_BT: Tensor | None) -> Tensor:
    """The table's rows at these positions, [T,D] or [B,T,D]; a slice, no gather, where positions are 0..T-1."""
    return table_PD[:length] if positions_BT is None else F.embedding(positions_BT, table_PD)
