"""Sines and cosines of the position, added to the embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from feeb_models.positions.sinusoidal import SinusoidalConfig
from feebcore.model.position import Position, rows_of
from feebcore.protocols import BuildContext


class Sinusoidal(Position):
    """stream + scale * [sin(p w), cos(p w)], w_i = base^(-2i/C)."""

    def __init__(self, config: SinusoidalConfig, context: BuildContext) -> None:
        super().__init__()
        angles = _angles(context.seq_len, context.d_model, config.base)
        self.register_buffer("table", config.scale * torch.cat([angles.sin(), angles.cos()], dim=-1), persistent=False)

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        return stream_BTC + rows_of(self.table, stream_BTC.shape[1], positions_BT)  # type: ignore[arg-type]


def _angles(seq_len: int, dim: int, base: float) -> Tensor:
    """[seq_len, dim / 2] fp32: position times frequency, made in fp64."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies).float()
