"""Vectors to scores: logits = logit_softcap tanh(W h / logit_softcap), or W h."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feeb_models.lm_heads import HeadConfig


class LinearHead(nn.Linear):
    def __init__(self, vocab_size: int, d_model: int, logit_softcap: float) -> None:
        super().__init__(d_model, vocab_size, bias=False)
        self.logit_softcap = logit_softcap

    def forward(self, hidden: Tensor) -> Tensor:
        return capped(super().forward(hidden), self.logit_softcap)

    @property
    def plain_weight(self) -> Tensor | None:
        """[V,C] when logits are W h and nothing else, for losses that multiply themselves."""
        return None if self.logit_softcap else self.weight


class TiedHead(nn.Module):
    """Shares the embedding's parameter: one tensor, seen under both names."""

    def __init__(self, embedding: nn.Module, logit_softcap: float) -> None:
        super().__init__()
        if not isinstance(embedding, nn.Embedding):
            raise ValueError(f"head tied needs an embedding that is one table, not {type(embedding).__name__}; choose head linear")
        self.weight, self.logit_softcap = embedding.weight, logit_softcap

    def forward(self, hidden: Tensor) -> Tensor:
        return capped(F.linear(hidden, self.weight), self.logit_softcap)

    @property
    def plain_weight(self) -> Tensor | None:
        """As LinearHead's."""
        return None if self.logit_softcap else self.weight

    def extra_flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.weight.numel()
        return flops, flops


def capped(logits: Tensor, logit_softcap: float) -> Tensor:
    return logit_softcap * torch.tanh(logits / logit_softcap) if logit_softcap else logits


def build_linear(config: HeadConfig, vocab_size: int, d_model: int, embedding: nn.Module) -> nn.Module:
    return LinearHead(vocab_size, d_model, config.logit_softcap)


def build_tied(config: HeadConfig, vocab_size: int, d_model: int, embedding: nn.Module) -> nn.Module:
    return TiedHead(embedding, config.logit_softcap)
