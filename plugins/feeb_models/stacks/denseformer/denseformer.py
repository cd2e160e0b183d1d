"""Each layer reads a weighted sum of the outputs of all layers before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.stacks.sequential.sequential import Sequential
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.protocols import BuildContext


class DenseFormer(Sequential):
    """After layer i the stream is y_i = sum_{j<=i} alpha_ij x_j, x_j what layer j made of y_{j-1} and x_0 the embedded tokens;
    alpha_ii = 1 and the others 0 at first (arXiv:2402.02622)."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.alphas = nn.ParameterList(torch.cat([torch.zeros(i + 1), torch.ones(1)]) for i in range(context.num_layers))

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        made, streams = [stream], []
        for block, alpha in zip(self.blocks, self.alphas, strict=True):
            output, context = block.run(stream, context)  # type: ignore[operator]
            made.append(output)
            stream = sum(alpha[j] * x for j, x in enumerate(made))  # type: ignore[assignment]
            streams.append(stream)
        return streams, context
