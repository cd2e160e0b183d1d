"""Blocks that read learned mixes of several residual streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from feeb_models.blocks.hyper_connections import HyperConnectionsConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart, ModelPart
from feebcore.protocols import BuildContext

Make = Callable[[], nn.Module]


class HyperConnection(ModelPart):
    """How one sublayer f reads N streams H [N,C] and writes to them (arXiv:2409.19606, section 2):

        x = Am^T H;   H' = Ar^T H + B^T f(norm(x))

    Am [N], Ar [N,N] and B [N] are learned; dynamic adds s tanh(norm(H) W) to each, W zero and s 0.01 at first. `place` is the
    stream that is read at first, Ar begins as the identity and B as ones: with all streams equal, that is prenorm.
    """

    def __init__(self, num_streams: int, d_model: int, place: int, dynamic: bool, make_norm: Make) -> None:
        super().__init__()
        N = num_streams
        self.num_streams, self.dynamic = N, dynamic
        read = torch.zeros(N, 1)
        read[place % N] = 1.0
        # rows: the stream that is read; columns: x, then the N streams of H'. Flat, so that optimizers see no matrix
        self.mix = nn.Parameter(torch.cat([read, torch.eye(N)], dim=1).flatten())
        self.write = nn.Parameter(torch.ones(N))
        if dynamic:
            self.norm = make_norm()
            self.weights = _Zero(d_model, N + 2, bias=False)
            self.mix_scale, self.write_scale = nn.Parameter(torch.full((1,), 0.01)), nn.Parameter(torch.full((1,), 0.01))

    def forward(self, streams_BTNC: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """H' [B,T,N,C]; sublayer: x [B,T,C] to what is written [B,T,C]."""
        N = self.num_streams
        mix: Tensor = self.mix.view(N, N + 1)
        write: Tensor = self.write
        if self.dynamic:
            change = torch.tanh(self.weights(self.norm(streams_BTNC)).float())
            mix, write = mix + self.mix_scale * change[..., : N + 1], write + self.write_scale * change[..., N + 1]
        # products written out: as a matrix product, autocast would round the streams to bf16 at every block
        mixed = (mix[..., None] * streams_BTNC[..., :, None, :]).sum(-3)
        return mixed[..., 1:, :] + write[..., None] * sublayer(mixed[..., 0, :])[..., None, :]

    def extra_flops(self, length: int) -> tuple[float, float]:
        more = 2.0 * length * (self.num_streams - 1) * self.weights.weight.numel() if self.dynamic else 0.0
        return more, more  # `weights` runs on every stream of a token; its walk counts one


class _Zero(nn.Linear, ModelPart):
    def init_weights(self, std: float, residual_std: float) -> None:
        nn.init.zeros_(self.weight)


class HyperConnections(BlockPart):
    """Attention, then feedforward, each on its own mix of N streams.

    Between blocks the stream is [B,T,N C], the N streams side by side. `expand_streams` makes it of the embedded tokens, N equal
    copies, and `reduce_streams` is their sum, which the final norm and whoever wants the layers are given.
    """

    def __init__(self, config: HyperConnectionsConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        N, C = config.num_streams, context.d_model
        self.attention_mix = HyperConnection(N, C, 2 * context.layer, config.dynamic, context.make_norm)
        self.feedforward_mix = HyperConnection(N, C, 2 * context.layer + 1, config.dynamic, context.make_norm)
        self.attention_norm, self.attention = context.make_norm(), context.make_attention()
        self.feedforward_norm, self.feedforward = context.make_norm(), context.make_feedforward()
        self.num_streams = N

    def forward(self, streams_BTM: Tensor, context: ForwardContext) -> Tensor:
        streams_BTNC = streams_BTM.unflatten(-1, (self.num_streams, -1))
        streams_BTNC = self.attention_mix(streams_BTNC, lambda x_BTC: self.dropout(self.attention(self.attention_norm(x_BTC), context)))
        streams_BTNC = self.feedforward_mix(streams_BTNC, lambda x_BTC: self.dropout(self.feedforward(self.feedforward_norm(x_BTC), context)))
        return streams_BTNC.flatten(-2)

    def expand_streams(self, stream_BTC: Tensor) -> Tensor:
        return stream_BTC.repeat(1, 1, self.num_streams)

    def reduce_streams(self, streams_BTM: Tensor) -> Tensor:
        return streams_BTM.unflatten(-1, (self.num_streams, -1)).sum(-2)
