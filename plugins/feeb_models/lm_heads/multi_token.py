"""Heads that also predict tokens after the next one, for objectives that ask (see `mtp_outputs` in feeb_models/lm_heads/__init__.py).

The head itself is a matrix and predicts the next token. What predicts further is not run by scoring and generation, nor by
objectives that do not ask for it, and so it is left out of the model's FLOPs and cache; an objective that asks counts `mtp_flops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from feeb_models.lm_heads import MultiTokenConfig, SequentialConfig
from feeb_models.lm_heads.linear import LinearHead
from feebcore.model.context import ForwardContext
from feebcore.model.counting import count_flops
from feebcore.model.transformer import Transformer, stream_maps
from feebcore.protocols import Batch, BlockShape, ModelOutput

Make = Callable[[], nn.Module]
MakeBlock = Callable[[int], nn.Module]
Futures = Iterator[tuple[Tensor, nn.Module]]


class Tower(nn.Module):
    """A stack of blocks of its own, begun like a model's: its first block is told that it is layer 0."""

    def __init__(self, num_blocks: int, make_block: MakeBlock, make_norm: Make) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(make_block(i) for i in range(num_blocks))
        self.norm = make_norm()
        self.expand_streams, self.reduce_streams = stream_maps(self.blocks)

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """The stream after the blocks, and normed."""
        context.start_BTC, stream = stream_BTC, self.expand_streams(stream_BTC)
        for block in self.blocks:
            stream = block(stream, context)
        stream_BTC = self.reduce_streams(stream)
        return stream_BTC, self.norm(stream_BTC)


class _NextTokenCounted(LinearHead):
    def flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.weight.numel()
        return flops, flops

    def cache_bytes(self) -> tuple[int, int]:
        return 0, 0

    def context(self, model: Transformer, batch: Batch, output: ModelOutput) -> ForwardContext:
        """A fresh one, whose auxiliary losses go to those of `output`."""
        context, _ = model.make_context(batch.tokens, batch.positions, batch.doc_ids)
        context.losses = output.losses
        return context


class ParallelHeads(_NextTokenCounted):
    """Future k reads the model's hidden states through blocks of its own and the same matrix W (arXiv:2404.19737):

    logits_k = W norm_k(blocks_k(h));   without blocks: logits_k = W_k h
    """

    def __init__(self, config: MultiTokenConfig, vocab_size: int, d_model: int, make_block: MakeBlock, make_norm: Make) -> None:
        super().__init__(vocab_size, d_model, config.logit_softcap)
        numbers = range(config.num_mtp)
        if config.num_blocks:
            self.towers = nn.ModuleList(Tower(config.num_blocks, make_block, make_norm) for _ in numbers)
        else:
            self.matrices = nn.ModuleList(LinearHead(vocab_size, d_model, config.logit_softcap) for _ in numbers)
        self.num_blocks = config.num_blocks

    def mtp_outputs(self, model: Transformer, batch: Batch, output: ModelOutput) -> Futures:
        if self.num_blocks:
            yield from ((tower(output.hidden, self.context(model, batch, output))[1], self) for tower in self.towers)
        else:
            yield from ((output.hidden, matrix) for matrix in self.matrices)

    def mtp_flops(self, model: nn.Module, length: int) -> list[float]:
        if not self.num_blocks:
            return [count_flops(matrix, length)[0] for matrix in self.matrices]
        return [count_flops(tower, length)[0] + self.flops(length)[0] for tower in self.towers]


class SequentialHeads(_NextTokenCounted):
    """Future k reads future k - 1 and the token that this one predicts (arXiv:2412.19437, section 2.2, equations 21 to 23):

        h^0 = hidden;   h^k_i = block_k(M_k [norm(h^(k-1)_i); norm(E[t_(i+k)])]);   logits_k = W norm_k(h^k)

    E and W are the model's. The last k places of a row lack t_(i+k) and hold nothing of use; their targets do not exist either.
    """

    def __init__(self, config: SequentialConfig, vocab_size: int, d_model: int, make_block: MakeBlock, make_norm: Make) -> None:
        super().__init__(vocab_size, d_model, config.logit_softcap)
        self.steps = nn.ModuleList(_Step(d_model, make_block, make_norm) for _ in range(config.num_mtp))

    def mtp_outputs(self, model: Transformer, batch: Batch, output: ModelOutput) -> Futures:
        stream_BTC = output.hidden
        tokens_BT = batch.targets.clamp(0, model.vocab_size - 1)  # targets that do not count may hold anything
        for step in self.steps:
            context = self.context(model, batch, output)
            stream_BTC, hidden_BTC = step(stream_BTC, model.embed(tokens_BT, context), context)
            yield hidden_BTC, self
            tokens_BT = torch.cat([tokens_BT[:, 1:], tokens_BT[:, -1:]], dim=1)

    def mtp_flops(self, model: nn.Module, length: int) -> list[float]:
        embedded = count_flops(model.embedding, length)[0]  # type: ignore[arg-type]
        return [embedded + count_flops(step, length)[0] + self.flops(length)[0] for step in self.steps]


class _Step(nn.Module):
    def __init__(self, d_model: int, make_block: MakeBlock, make_norm: Make) -> None:
        super().__init__()
        self.stream_norm, self.token_norm = make_norm(), make_norm()
        self.join = nn.Linear(2 * d_model, d_model, bias=False)
        self.tower = Tower(1, make_block, make_norm)

    def forward(self, stream_BTC: Tensor, token_BTC: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor]:
        return self.tower(self.join(torch.cat([self.stream_norm(stream_BTC), self.token_norm(token_BTC)], dim=-1)), context)


def build_multi_token(config: MultiTokenConfig, vocab_size: int, d_model: int, embedding: nn.Module, block: BlockShape, make_block: MakeBlock) -> nn.Module:
    return ParallelHeads(config, vocab_size, d_model, make_block, _norms(block))


def build_multi_token_sequential(
    config: SequentialConfig, vocab_size: int, d_model: int, embedding: nn.Module, block: BlockShape, make_block: MakeBlock
) -> nn.Module:
    return SequentialHeads(config, vocab_size, d_model, make_block, _norms(block))


def _norms(block: BlockShape) -> Make:
    make_norm = block.make_norm
    assert make_norm is not None
    return lambda: make_norm(block.d_model)
