"""Rotary position embeddings: pairs of a query's or key's dimensions rotated by angles proportional to the position (arXiv:2104.09864).

    (a_i, b_i) -> (a_i cos p w_i - b_i sin p w_i, a_i sin p w_i + b_i cos p w_i),    w_i = base^(-2i/D)

so that q.k depends on the distance alone. The variants for contexts longer than those trained on, L -> s L, change w_i;
with s = 1 each is plain rope.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from feeb_models.positions.rope import RopeConfig, ScaledRopeConfig, YarnRopeConfig
from feebcore.model.position import Position, rows_of
from feebcore.protocols import BuildContext


class Rope(Position):
    """Pairs are (x_i, x_{i + D/2}), or (x_{2i}, x_{2i+1}) with interleaved. partial_rotary_factor of a head's dimensions are
    rotated, from the first on."""

    def __init__(self, config: RopeConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, self.seq_len, self.head_dim = config, context.seq_len, context.head_dim
        self.num_rotated, self.interleaved = config.num_rotated, config.interleaved
        self.register_buffer("cos", self._angles(self.head_dim).cos(), persistent=False)
        self.register_buffer("sin", self._angles(self.head_dim).sin(), persistent=False)
        self.others: list[int] = []

    def frequencies(self, dim: int) -> Tensor:
        """[dim / 2] fp64: radians per position of each pair, `dim` dimensions being rotated."""
        return plain(dim, self.config.base)

    def also_rotate(self, head_dim: int) -> None:
        if head_dim != self.head_dim and head_dim not in self.others:
            self.others.append(head_dim)
            self.register_buffer(f"cos_{head_dim}", self._angles(head_dim).cos(), persistent=False)
            self.register_buffer(f"sin_{head_dim}", self._angles(head_dim).sin(), persistent=False)

    def prepare(self, length: int, positions_BT: Tensor | None) -> dict[int, tuple[Tensor, Tensor]]:
        """For each width of head: cos and sin, [T,1,D/2] or [B,T,1,D/2] each."""
        tables = {self.head_dim: (self.cos, self.sin)} | {d: (getattr(self, f"cos_{d}"), getattr(self, f"sin_{d}")) for d in self.others}
        return {d: tuple(rows_of(table, length, positions_BT).unsqueeze(-2) for table in pair) for d, pair in tables.items()}  # type: ignore[misc, arg-type]

    def rotate(self, x_BTHD: Tensor, prepared: dict[int, tuple[Tensor, Tensor]]) -> Tensor:
        D = x_BTHD.shape[-1]
        if D not in prepared:
            raise ValueError(
                f"rope has no angles for heads of width {D}; an attention that rotates such calls context.position.also_rotate({D}) when it is made"
            )
        cos, sin = prepared[D]
        if (rotated := self.num_rotated(D)) == D:
            return self._rotated(x_BTHD, cos, sin).to(x_BTHD.dtype)
        return torch.cat([self._rotated(x_BTHD[..., :rotated], cos, sin).to(x_BTHD.dtype), x_BTHD[..., rotated:]], dim=-1)

    def _rotated(self, x_BTHR: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.interleaved:
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


def by_parts(frequencies: Tensor, factor: float, original_length: float, low: float, high: float) -> Tensor:
    """Frequencies with fewer than `low` rotations in the original context are divided by `factor`, those with more than `high`
    stay, and between the two they are mixed, linearly in the number of rotations (arXiv:2309.00071, section 3.2)."""
    rotations = original_length * frequencies / (2 * math.pi)
    share = ((rotations - low) / (high - low)).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / factor


class LinearRope(Rope):
    """Position interpolation (arXiv:2306.15595)."""

    config: ScaledRopeConfig

    def frequencies(self, dim: int) -> Tensor:
        return plain(dim, self.config.base) / self.config.factor


class NtkRope(Rope):
    """A larger base (arXiv:2309.00071, section 3.1)."""

    config: ScaledRopeConfig

    def frequencies(self, dim: int) -> Tensor:
        # the lowest frequency is then exactly the linear one, the highest stays; a single pair is both, and stays
        return plain(dim, self.config.base * self.config.factor ** (dim / (dim - 2)) if dim > 2 else self.config.base)


class Llama3Rope(Rope):
    """Slow frequencies stretched (arXiv:2407.21783)."""

    config: YarnRopeConfig

    def frequencies(self, dim: int) -> Tensor:
        config = self.config
        original = config.original_max_position_embeddings or self.seq_len / config.factor
        return by_parts(plain(dim, config.base), config.factor, original, config.beta_slow, config.beta_fast)


class YarnRope(Llama3Rope):
    """Slow frequencies stretched, and scores multiplied so that attention is sharper (arXiv:2309.00071, section 3.4)."""

    def __init__(self, config: YarnRopeConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.score_scale = (1 + 0.1 * math.log(config.factor)) ** 2
