"""One block after the other, each with its own weights."""

from __future__ import annotations

from torch import Tensor, nn

from feebcore.config import PartConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart, StackPart
from feebcore.protocols import BuildContext


class Sequential(StackPart):
    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(context.make_block(layer) for layer in range(context.num_layers))
        self.num_streams = context.num_layers

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        streams = []
        for block in self.blocks:
            assert isinstance(block, BlockPart)
            stream, context = block.run(stream, context)
            streams.append(stream)
        return streams, context
