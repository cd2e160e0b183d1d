"""Whole models."""

from __future__ import annotations

from feeb_models import TransformerConfig
from feebcore.model.transformer import Transformer


def build_transformer(config: TransformerConfig, vocab_size: int, seq_len: int) -> Transformer:
    model = Transformer(config, vocab_size, seq_len)
    config.initialization.build()(model, model.all_layers)
    return model
