"""Attention with linear biases (arXiv:2108.12409): nothing is added or rotated; a score falls with the distance.

score_h(t, s) = q_t . k_s / sqrt(D) - m_h (t - s)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from feebcore.config import NoOptions
from feebcore.model.position import Position
from feebcore.protocols import BuildContext


class Alibi(Position):
    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(slopes(context.num_heads)), persistent=False)

    def bias(self, length: int, num_keys: int) -> Tensor:
        t = torch.arange(num_keys - length, num_keys, device=self.slopes.device)  # type: ignore[arg-type]
        s = torch.arange(num_keys, device=t.device)
        return self.slopes[:, None, None] * (s - t[:, None])  # type: ignore[operator, index]

    def bias_of(self, head: Tensor, distance: Tensor) -> Tensor:
        return -self.slopes[head] * distance  # type: ignore[operator, index, return-value]


def slopes(num_heads: int) -> list[float]:
    """m_h = 2^(-8h/H), h = 1..H, for a power of two; else those of the power below and every other one of the power above,
    as in the paper's code."""
    below = 2 ** math.floor(math.log2(num_heads))
    first = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    between = [2 ** (-4 * h / below) for h in range(1, 2 * below + 1, 2)]
    return first + between[: num_heads - below]
