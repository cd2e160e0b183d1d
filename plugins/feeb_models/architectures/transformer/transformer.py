"""The transformer of feebcore with initialized weights."""

from __future__ import annotations

from feebcore.model.config import TransformerConfig
from feebcore.model.transformer import Transformer
from feebcore.protocols import BuildContext


def build_transformer(config: TransformerConfig, context: BuildContext) -> Transformer:
    model = Transformer(config, context)
    config.initialization.build()(model, model.all_layers)
    return model
