"""How blocks are stacked. Called `(stream [B,T,C], context)`, a depth returns the stream after every layer, in order;
`num_streams` says how many."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext


class Sequential(nn.Module):
    def __init__(self, num_layers: int, make_block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(num_layers))
        self.num_streams = num_layers

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> list[Tensor]:
        streams = []
        for block in self.blocks:
            stream_BTC = block(stream_BTC, context)
            streams.append(stream_BTC)
        return streams


def build_sequential(config: NoOptions, num_layers: int, make_block: Callable[[int], nn.Module]) -> nn.Module:
    return Sequential(num_layers, make_block)
