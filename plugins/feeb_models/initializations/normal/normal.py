"""Normal weights."""

from __future__ import annotations

import math

from torch import nn

from feeb_models.initializations.normal import NormalConfig
from feebcore.model.counting import ModelPart, draws_own_weights
from feebcore.model.draws import modules_to_draw
from feebcore.model.parts import ResidualLinear
from feebcore.protocols import BuildContext


class Normal:
    """Matrices ~ N(0, std^2); those that add to the stream ~ N(0, std^2 / 2L), or 0; biases 0."""

    def __init__(self, config: NormalConfig, context: BuildContext) -> None:
        self.config = config

    def __call__(self, model: nn.Module, num_layers: int) -> None:
        config = self.config
        residual_std = config.std / math.sqrt(2 * num_layers) if config.residual_scale else config.std
        residual_std = 0.0 if config.zero_residual else residual_std
        for _, module in modules_to_draw(model):
            if isinstance(module, ModelPart) and draws_own_weights(module):
                module.init_weights(config.std, residual_std)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=config.embedding_std or config.std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=residual_std if isinstance(module, ResidualLinear) else config.std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if config.zero_lm_head and isinstance(model.lm_head, nn.Linear):
            nn.init.zeros_(model.lm_head.weight)
