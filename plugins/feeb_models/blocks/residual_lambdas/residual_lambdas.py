"""Pre-norm on a learned mix of the stream and its start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.blocks.prenorm.prenorm import PreNorm
from feeb_models.blocks.residual_lambdas import ResidualLambdasConfig
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext


class ResidualLambdas(PreNorm):
    """r = l0 r + l1 s, s the stream before the first block; then as prenorm. l0 and l1 are two learned numbers per block."""

    def __init__(self, config: ResidualLambdasConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.lambdas = nn.Parameter(torch.tensor([config.stream, config.start]))

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        assert context.start_BTC is not None
        return super().forward(self.lambdas[0] * stream_BTC + self.lambdas[1] * context.start_BTC, context)
