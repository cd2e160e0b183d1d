"""Initial weights, drawn from torch's current random state."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from feeb_models.initializations import NormalConfig
from feebcore.model.parts import ResidualLinear


def build_normal(config: NormalConfig) -> Callable[[nn.Module, int], None]:
    """Matrices ~ N(0, std^2); those that add to the stream ~ N(0, std^2 / 2L), or 0; biases 0."""

    def initialize(model: nn.Module, num_layers: int) -> None:
        residual_std = config.std / math.sqrt(2 * num_layers) if config.residual_scale else config.std
        residual_std = 0.0 if config.zero_residual else residual_std
        for module in model.modules():
            if callable(init_weights := getattr(module, "init_weights", None)):
                init_weights(config.std, residual_std)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=config.embedding_std or config.std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=residual_std if isinstance(module, ResidualLinear) else config.std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if config.zero_lm_head and isinstance(model.lm_head, nn.Linear):
            nn.init.zeros_(model.lm_head.weight)

    return initialize
