"""Blocks that learn how much of what they read: of the stream and its start, or of several streams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from feeb_models.blocks import HyperConnectionsConfig, ResidualLambdasConfig
from feeb_models.blocks.basic import Make, PreNorm
from feebcore.model.context import ForwardContext
from feebcore.protocols import BlockShape


class ResidualLambdas(PreNorm):
    """r = l0 r + l1 s, s the stream before the first block; then as prenorm. l0 and l1 are two learned numbers a block."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make, stream: float, start: float) -> None:
        super().__init__(make_attention, make_feedforward, make_norm)
        self.lambdas = nn.Parameter(torch.tensor([stream, start]))

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        assert context.start_BTC is not None
        return super().forward(self.lambdas[0] * stream_BTC + self.lambdas[1] * context.start_BTC, context)


class HyperConnection(nn.Module):
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


class _Zero(nn.Linear):
    def init_weights(self, std: float, residual_std: float) -> None:
        nn.init.zeros_(self.weight)


class HyperConnections(nn.Module):
    """Attention, then feedforward, each on its own mix of N streams.

    Between blocks the stream is [B,T,N C], the N streams side by side. `expand_streams` makes it of the embedded tokens, N equal
    copies, and `reduce_streams` is their sum, which the final norm and whoever wants the layers are given; see
    feebcore/model/transformer.py.
    """

    def __init__(self, config: HyperConnectionsConfig, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> None:
        super().__init__()
        N, C = config.num_streams, block.d_model
        self.attention_mix = HyperConnection(N, C, 2 * block.layer, config.dynamic, make_norm)
        self.feedforward_mix = HyperConnection(N, C, 2 * block.layer + 1, config.dynamic, make_norm)
        self.attention_norm, self.attention = make_norm(), make_attention()
        self.feedforward_norm, self.feedforward = make_norm(), make_feedforward()
        self.num_streams = N

    def forward(self, streams_BTM: Tensor, context: ForwardContext) -> Tensor:
        streams_BTNC = streams_BTM.unflatten(-1, (self.num_streams, -1))
        streams_BTNC = self.attention_mix(streams_BTNC, lambda x_BTC: self.attention(self.attention_norm(x_BTC), context))
        return self.feedforward_mix(streams_BTNC, lambda x_BTC: self.feedforward(self.feedforward_norm(x_BTC), context)).flatten(-2)

    def expand_streams(self, stream_BTC: Tensor) -> Tensor:
        return stream_BTC.repeat(1, 1, self.num_streams)

    def reduce_streams(self, streams_BTM: Tensor) -> Tensor:
        return streams_BTM.unflatten(-1, (self.num_streams, -1)).sum(-2)


def build_residual_lambdas(config: ResidualLambdasConfig, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return ResidualLambdas(make_attention, make_feedforward, make_norm, config.stream, config.start)


def build_hyper_connections(config: HyperConnectionsConfig, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> nn.Module:
    return HyperConnections(config, make_attention, make_feedforward, make_norm, block)
