"""One vector a token, scaled, normed or made of a smaller one."""

from __future__ import annotations

import math

from torch import Tensor, nn

from feeb_models.embeddings import FactorizedConfig, ScaledConfig
from feebcore.config import NoOptions
from feebcore.protocols import BlockShape


class Scaled(nn.Embedding):
    """s E[token]. The table itself is what a tied head shares, without s."""

    def __init__(self, vocab_size: int, d_model: int, scale: float) -> None:
        super().__init__(vocab_size, d_model)
        self.scale = scale

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.scale * super().forward(tokens_BT)


class Normed(nn.Embedding):
    """norm(E[token]), with the model's norm."""

    def __init__(self, vocab_size: int, d_model: int, norm: nn.Module) -> None:
        super().__init__(vocab_size, d_model)
        self.norm = norm

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.norm(super().forward(tokens_BT))


class Factorized(nn.Module):
    """W E[token], E [V,R] and W [C,R]: V R + R C parameters instead of V C (arXiv:1909.11942, section 3.1)."""

    def __init__(self, vocab_size: int, d_model: int, rank: int) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(vocab_size, rank), _KeepsSize(rank, d_model, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.up(self.table(tokens_BT))


class _KeepsSize(nn.Linear):
    def init_weights(self, std: float, residual_std: float) -> None:
        """Vectors come out with the deviation of the table, as from one table."""
        nn.init.normal_(self.weight, std=1 / math.sqrt(self.in_features))


def build_scaled(config: ScaledConfig, vocab_size: int, d_model: int) -> nn.Module:
    return Scaled(vocab_size, d_model, config.scale or math.sqrt(d_model))


def build_normed(config: NoOptions, vocab_size: int, d_model: int, block: BlockShape) -> nn.Module:
    assert block.make_norm is not None
    return Normed(vocab_size, d_model, block.make_norm(d_model))


def build_factorized(config: FactorizedConfig, vocab_size: int, d_model: int) -> nn.Module:
    return Factorized(vocab_size, d_model, config.rank)
