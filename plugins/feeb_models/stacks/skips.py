"""Every layer has its own weights, and the stream goes other ways between them than straight on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from feeb_models.stacks.sequential import Sequential
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext

MakeBlock = Callable[[int], nn.Module]


class DenseFormer(Sequential):
    """After layer i the stream is y_i = sum_{j<=i} alpha_ij x_j, x_j what layer j made of y_{j-1} and x_0 the embedded tokens;
    alpha_ii = 1 and the others 0 at first (arXiv:2402.02622)."""

    def __init__(self, num_layers: int, make_block: MakeBlock) -> None:
        super().__init__(num_layers, make_block)
        self.alphas = nn.ParameterList(torch.cat([torch.zeros(i + 1), torch.ones(1)]) for i in range(num_layers))

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> list[Tensor]:
        made, streams = [stream_BTC], []
        for block, alpha in zip(self.blocks, self.alphas, strict=True):
            made.append(block(stream_BTC, context))
            stream_BTC = sum(alpha[j] * x_BTC for j, x_BTC in enumerate(made))  # type: ignore[assignment]
            streams.append(stream_BTC)
        return streams


class UNet(Sequential):
    """Layer i of the second half is given r + w_i s, s the stream that its mirror in the first half was given, w_i learned and 0
    at first: the last layer reads what the first read. With an odd number the middle one has no mirror."""

    def __init__(self, num_layers: int, make_block: MakeBlock) -> None:
        super().__init__(num_layers, make_block)
        self.weights = nn.Parameter(torch.zeros(max(1, num_layers // 2))) if num_layers > 1 else None

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> list[Tensor]:
        given: list[Tensor] = []
        streams: list[Tensor] = []
        num_layers = len(self.blocks)
        for i, block in enumerate(self.blocks):
            if i < num_layers // 2:
                given.append(stream_BTC)
            elif i >= num_layers - num_layers // 2 and self.weights is not None:
                stream_BTC = stream_BTC + self.weights[num_layers - 1 - i] * given[num_layers - 1 - i]
            stream_BTC = block(stream_BTC, context)
            streams.append(stream_BTC)
        return streams


def build_denseformer(config: NoOptions, num_layers: int, make_block: MakeBlock) -> nn.Module:
    return DenseFormer(num_layers, make_block)


def build_unet(config: NoOptions, num_layers: int, make_block: MakeBlock) -> nn.Module:
    return UNet(num_layers, make_block)
