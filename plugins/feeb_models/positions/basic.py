"""Where a token stands, added to the embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.positions import SinusoidalConfig
from feebcore.config import NoOptions
from feebcore.model.parts import Position, rows_of
from feebcore.protocols import BlockShape


class Learned(Position):
    """stream + P[position]."""

    def __init__(self, seq_len: int, d_model: int) -> None:
        super().__init__()
        self.table = nn.Embedding(seq_len, d_model)

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        return stream_BTC + rows_of(self.table.weight, stream_BTC.shape[1], positions_BT)


class Sinusoidal(Position):
    """stream + scale * [sin(p w), cos(p w)], w_i = base^(-2i/C)."""

    def __init__(self, seq_len: int, d_model: int, base: float, scale: float) -> None:
        super().__init__()
        angles = _angles(seq_len, d_model, base)
        self.register_buffer("table", scale * torch.cat([angles.sin(), angles.cos()], dim=-1), persistent=False)

    def add(self, stream_BTC: Tensor, positions_BT: Tensor | None) -> Tensor:
        return stream_BTC + rows_of(self.table, stream_BTC.shape[1], positions_BT)  # type: ignore[arg-type]


def _angles(seq_len: int, dim: int, base: float) -> Tensor:
    """[seq_len, dim / 2] fp32: position times frequency, made in fp64."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies).float()


def build_learned(config: NoOptions, block: BlockShape) -> Position:
    return Learned(block.seq_len, block.d_model)


def build_sinusoidal(config: SinusoidalConfig, block: BlockShape) -> Position:
    return Sinusoidal(block.seq_len, block.d_model, config.base, config.scale)


def build_none(config: NoOptions, block: BlockShape) -> Position:
    return Position()
