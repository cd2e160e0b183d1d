"""Skip connections from the first half of the layers to the second."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.stacks.sequential.sequential import Sequential
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext


class UNet(Sequential):
    """Layer i of the second half is given r + w_i s, s the input of its mirror in the first half, w_i learned and 0
    at first: the last layer reads what the first read. With an odd number the middle one has no mirror."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.weights = nn.Parameter(torch.zeros(max(1, context.num_layers // 2))) if context.num_layers > 1 else None

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        inputs: list[Tensor] = []
        streams: list[Tensor] = []
        num_layers = len(self.blocks)
        for i, block in enumerate(self.blocks):
            if i < num_layers // 2:
                inputs.append(stream)
            elif i >= num_layers - num_layers // 2 and self.weights is not None:
                stream = stream + self.weights[num_layers - 1 - i] * inputs[num_layers - 1 - i]
            stream, context = block.run(stream, context)  # type: ignore[operator]
            streams.append(stream)
        return streams, context
