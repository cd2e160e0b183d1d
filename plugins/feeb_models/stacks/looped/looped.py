"""Blocks that run several times a forward pass. Counts and caches are those of all passes; the parameters are there once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from feeb_models.stacks.looped import ActConfig, EarlyExitConfig, LoopedConfig
from feebcore.model.context import ForwardContext
from feebcore.model.counting import add_caches, count_cache, count_flops
from feebcore.model.parts import StackPart
from feebcore.protocols import BuildContext


class Looped(StackPart):
    """`order[i]` is the block of pass i. A block is told the layer of its first pass.

    inject: the stream that came in is added before every pass but the first. pass_embedding: a learned vector per pass is added
    before it, as in the Universal Transformer.
    """

    def __init__(self, config: LoopedConfig, context: BuildContext) -> None:
        super().__init__()
        self.order = config.passes(context.num_layers)
        self.num_streams = len(self.order)
        self.blocks = nn.ModuleList(context.make_block(i) for i in range(max(self.order) + 1))
        self.inject = config.inject
        self.pass_table = nn.Embedding(len(self.order), context.d_model) if config.pass_embedding else None

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        streams, start = [], stream
        for i in range(len(self.order)):
            stream, context = self.run_pass(i, stream, start, context)
            streams.append(stream)
        return streams, context

    def run_pass(self, i: int, stream: Tensor, start: Tensor, context: ForwardContext) -> tuple[Tensor, ForwardContext]:
        if self.inject and i:
            stream = stream + start
        if self.pass_table is not None:
            stream = stream + self.expand_streams(self.pass_table.weight[i].expand(1, 1, -1))
        return self.blocks[self.order[i]].run(stream, context)  # type: ignore[operator]

    def flops(self, length: int) -> tuple[float, float]:
        each = [count_flops(self.blocks[i], length) for i in self.order]
        return sum(full for full, _ in each), sum(causal for _, causal in each)

    def cache_bytes(self) -> tuple[int, int]:
        return add_caches(count_cache(self.blocks[i]) for i in self.order)


class AdaptiveComputationTime(Looped):
    """The weighted mean of the streams after every pass, weights p_n the probability to halt after pass n (arXiv:1603.08983,
    arXiv:2107.05407):

        lambda_n = sigmoid(w . s_n + b);   p_n = lambda_n prod_{j<n} (1 - lambda_j);   the last pass takes what is left
        result = sum_n p_n s_n

    by token: lambda depends on the token's stream s_n. Otherwise each pass has one learned number. All passes are always
    computed, so compute does not depend on the data. Later tokens attend to streams after n passes, not to mixtures. ponder:
    ponder times the mean of sum_n n p_n is an auxiliary loss. The last of the streams that are returned is the mixture.
    """

    def __init__(self, config: ActConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.by_token, self.ponder = config.by_token, config.ponder
        several = len(self.order) > 1
        self.bias = nn.Parameter(torch.zeros(1 if config.by_token else len(self.order) - 1)) if several else None
        self.weight = nn.Parameter(torch.zeros(context.d_model)) if several and config.by_token else None

    def init_weights(self, std: float, residual_std: float) -> None:
        """By token every lambda begins near 1 / passes; else lambda_n = 1 / (passes left), so that every p_n is 1 / passes."""
        if self.bias is None:
            return
        passes = len(self.order)
        with torch.no_grad():
            if self.weight is not None:
                self.weight.normal_(std=std)
                self.bias.fill_(-math.log(passes - 1))
            else:
                self.bias.copy_(-torch.log(passes - 1.0 - torch.arange(passes - 1.0)))

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        streams, context = super().forward(stream, context)
        if self.bias is None:
            return streams, context
        weights = self.halting_weights(streams)
        if self.ponder:
            context.add_loss("ponder", self.ponder * sum((n + 1) * p.mean() for n, p in enumerate(weights)))  # type: ignore[arg-type]
        mixture = torch.stack([p * s.float() for p, s in zip(weights, streams, strict=True)]).sum(0)
        return [*streams[:-1], mixture.to(streams[-1].dtype)], context

    def halting_weights(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """p_n, each [B,T,1] by token, else [1]; they sum to 1."""
        assert self.bias is not None
        left, weights = torch.ones_like(self.bias[:1]), []
        for n, stream in enumerate(streams[:-1]):
            if self.weight is None:
                halts = torch.sigmoid(self.bias[n : n + 1])
            else:
                halts = torch.sigmoid((self.reduce_streams(stream).float() * self.weight).sum(-1, keepdim=True) + self.bias)
            weights.append(left * halts)
            left = left * (1 - halts)
        return [*weights, left]


class EarlyExit(Looped):
    """A token's stream stays as it is once a pass has changed it by less than a threshold: |s_n - s_{n-1}| < threshold |s_{n-1}|.

    The decision is each token's own, so no row or document depends on another, and it is a mask: all passes are computed, and
    what is saved is what a kernel that skips such tokens would save; `passes_run` counts it. Other tokens still attend to
    those that stopped. In training nothing stops unless `while_training`.
    """

    def __init__(self, config: EarlyExitConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.threshold, self.while_training = config.threshold, config.while_training

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        if self.training and not self.while_training:
            return super().forward(stream, context)
        streams, start, live_BT1 = [], stream, torch.ones_like(stream[..., :1], dtype=torch.bool)
        for i in range(len(self.order)):
            changed, context = self.run_pass(i, stream, start, context)
            new = torch.where(live_BT1, changed, stream)
            change = (new.detach().float() - stream.detach().float()).norm(dim=-1, keepdim=True)
            live_BT1 = live_BT1 & (change >= self.threshold * stream.detach().float().norm(dim=-1, keepdim=True))
            stream = new
            streams.append(stream)
        return streams, context


def passes_run(streams: Sequence[Tensor], start_BTC: Tensor | None = None) -> Tensor:
    """[B,T] int64: after how many passes a token's stream no longer changes. streams: `layers` of a ModelOutput that was asked
    for with want_layers=True; start_BTC: the stream before the first pass, without which the first pass counts as run."""
    first = torch.ones(streams[0].shape[:-1], dtype=torch.int64, device=streams[0].device)
    last = first if start_BTC is None else (streams[0] != start_BTC).any(-1).long()
    for n in range(1, len(streams)):
        last = torch.where((streams[n] != streams[n - 1]).any(-1), n + 1, last)
    return last
