"""Rotary positions: pairs of a query's or key's dimensions turned by angles that grow with the position (arXiv:2104.09864).

    (a_i, b_i) -> (a_i cos p w_i - b_i sin p w_i, a_i sin p w_i + b_i cos p w_i),    w_i = base^(-2i/D)

so that q.k depends on the distance alone. The variants for windows longer than those trained on, L -> s L, change w_i;
with s = 1 each is plain rope.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from feeb_models.positions import LlamaRopeConfig, RopeConfig, ScaledRopeConfig, YarnRopeConfig
from feebcore.model.parts import Position, rows_of
from feebcore.protocols import BlockShape

Frequencies = Callable[[int], Tensor]
"""`frequencies(num_rotated) -> w [num_rotated / 2]` fp64"""


class Rope(Position):
    """Pairs are (x_i, x_{i + D/2}), or (x_{2i}, x_{2i+1}) with pairing 'adjacent'. `fraction` of a head's dimensions are
    turned, from the first on. temperature: multiplies queries and keys."""

    def __init__(self, seq_len: int, head_dim: int, frequencies: Frequencies, config: RopeConfig, temperature: float = 1.0) -> None:
        super().__init__()
        self.seq_len, self.head_dim, self.frequencies, self.temperature = seq_len, head_dim, frequencies, temperature
        self.num_rotated, self.adjacent = config.num_rotated, config.pairing == "adjacent"
        self.register_buffer("cos", self._angles(head_dim).cos() * temperature, persistent=False)
        self.register_buffer("sin", self._angles(head_dim).sin() * temperature, persistent=False)
        self.others: list[int] = []

    def also_rotate(self, head_dim: int) -> None:
        if head_dim != self.head_dim and head_dim not in self.others:
            self.others.append(head_dim)
            self.register_buffer(f"cos_{head_dim}", self._angles(head_dim).cos() * self.temperature, persistent=False)
            self.register_buffer(f"sin_{head_dim}", self._angles(head_dim).sin() * self.temperature, persistent=False)

    def prepare(self, length: int, positions_BT: Tensor | None) -> dict[int, tuple[Tensor, Tensor]]:
        """For each width of head: cos and sin, [T,1,D/2] or [B,T,1,D/2] each."""
        tables = {self.head_dim: (self.cos, self.sin)} | {d: (getattr(self, f"cos_{d}"), getattr(self, f"sin_{d}")) for d in self.others}
        return {d: tuple(rows_of(table, length, positions_BT).unsqueeze(-2) for table in pair) for d, pair in tables.items()}  # type: ignore[misc, arg-type]

    def rotate(self, x_BTHD: Tensor, prepared: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        D = x_BTHD.shape[-1]
        if D not in prepared:
            raise ValueError(f"rope has no angles for heads of width {D}; an attention that rotates such calls block.position.also_rotate({D}) when it is made")
        cos, sin = prepared[D]
        if (rotated := self.num_rotated(D)) == D:
            return self._turned(x_BTHD, cos, sin).to(x_BTHD.dtype)
        return torch.cat([self._turned(x_BTHD[..., :rotated], cos, sin).to(x_BTHD.dtype), x_BTHD[..., rotated:] * self.temperature], dim=-1)

    def _turned(self, x_BTHR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.adjacent:
            a, b = x_BTHR.float().unflatten(-1, (-1, 2)).unbind(-1)
            return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
        a, b = x_BTHR.float().chunk(2, dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def _angles(self, head_dim: int) -> Tensor:
        """[seq_len, num_rotated / 2] fp32: position times frequency, made in fp64."""
        return torch.outer(torch.arange(self.seq_len, dtype=torch.float64), self.frequencies(self.num_rotated(head_dim))).float()


def plain(dim: int, base: float) -> Tensor:
    """[dim / 2] fp64: base^(-2i/dim)."""
    return base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def by_parts(frequencies: Tensor, factor: float, trained_len: float, low: float, high: float) -> Tensor:
    """Frequencies that turn fewer than `low` times in the trained window are divided by `factor`, those that turn more than
    `high` times stay, and between the two they are mixed, linearly in the number of turns (arXiv:2309.00071, section 3.2)."""
    turns = trained_len * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / factor


def build_rope(config: RopeConfig, block: BlockShape) -> nn.Module:
    return Rope(block.seq_len, block.head_dim, lambda dim: plain(dim, config.base), config)


def build_linear(config: ScaledRopeConfig, block: BlockShape) -> nn.Module:
    return Rope(block.seq_len, block.head_dim, lambda dim: plain(dim, config.base) / config.factor, config)


def build_ntk(config: ScaledRopeConfig, block: BlockShape) -> nn.Module:
    def frequencies(dim: int) -> Tensor:
        # the lowest frequency is then exactly the linear one, the highest stays; a single pair is both, and stays
        return plain(dim, config.base * config.factor ** (dim / (dim - 2)) if dim > 2 else config.base)

    return Rope(block.seq_len, block.head_dim, frequencies, config)


def build_yarn(config: YarnRopeConfig, block: BlockShape) -> nn.Module:
    trained = config.trained_len or block.seq_len / config.factor

    def frequencies(dim: int) -> Tensor:
        return by_parts(plain(dim, config.base), config.factor, trained, config.slow, config.fast)

    return Rope(block.seq_len, block.head_dim, frequencies, config, temperature=1 + 0.1 * math.log(config.factor))


def build_llama3(config: LlamaRopeConfig, block: BlockShape) -> nn.Module:
    trained = config.trained_len or block.seq_len / config.factor

    def frequencies(dim: int) -> Tensor:
        return by_parts(plain(dim, config.base), config.factor, trained, config.slow, config.fast)

    return Rope(block.seq_len, block.head_dim, frequencies, config)
