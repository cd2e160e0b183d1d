"""Where a token stands: added to the embedding, or turned into queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.positions import RopeConfig, SinusoidalConfig
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


class Rope(Position):
    """Pairs (x_i, x_{i + D/2}) turned by the angle p base^(-2i/D), so that q.k depends on the distance alone."""

    def __init__(self, seq_len: int, head_dim: int, base: float) -> None:
        super().__init__()
        angles = _angles(seq_len, head_dim, base)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def prepare(self, length: int, positions_BT: Tensor | None) -> tuple[Tensor, Tensor]:
        cos, sin = (rows_of(table, length, positions_BT) for table in (self.cos, self.sin))  # type: ignore[arg-type]
        return cos.unsqueeze(-2), sin.unsqueeze(-2)  # [T,1,D/2] or [B,T,1,D/2]

    def rotate(self, x_BTHD: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        cos, sin = prepared
        a, b = x_BTHD.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1).to(x_BTHD.dtype)


def _angles(seq_len: int, dim: int, base: float) -> Tensor:
    """[seq_len, dim / 2] fp32: position times frequency, made in fp64."""
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    return torch.outer(torch.arange(seq_len, dtype=torch.float64), frequencies).float()


def build_learned(config: NoOptions, block: BlockShape) -> Position:
    return Learned(block.seq_len, block.d_model)


def build_sinusoidal(config: SinusoidalConfig, block: BlockShape) -> Position:
    return Sinusoidal(block.seq_len, block.d_model, config.base, config.scale)


def build_rope(config: RopeConfig, block: BlockShape) -> Position:
    return Rope(block.seq_len, block.head_dim, config.base)


def build_none(config: NoOptions, block: BlockShape) -> Position:
    return Position()
