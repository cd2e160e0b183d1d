"""Tokens to vectors."""

from __future__ import annotations

from torch import nn

from feebcore.config import NoOptions


def build_standard(config: NoOptions, vocab_size: int, d_model: int) -> nn.Module:
    return nn.Embedding(vocab_size, d_model)
