"""Heads that also predict tokens after the next one, for objectives that ask (`mtp_outputs` of LMHeadPart).

The head itself is a matrix and predicts the next token. What predicts further is not run by scoring and generation, nor by
objectives that do not ask for it, and so it is left out of the model's FLOPs and cache; an objective that asks counts `mtp_flops`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from feeb_models.lm_heads.linear.linear import LinearHead
from feeb_models.lm_heads.multi_token import MultiTokenHeadConfig, SequentialConfig
from feebcore.model.context import ForwardContext
from feebcore.model.counting import count_flops
from feebcore.model.parts import BlockPart
from feebcore.model.transformer import Transformer
from feebcore.protocols import Batch, BuildContext, ModelOutput

Further = Iterator[tuple[Tensor, nn.Module]]


class Tower(nn.Module):
    """A stack of blocks of its own, numbered from layer 0 like a model's."""

    def __init__(self, num_blocks: int, context: BuildContext) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(context.make_block(i) for i in range(num_blocks))
        self.norm = context.make_norm()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The stream after the blocks, the same normalized, and the auxiliary losses."""
        first = self.blocks[0]
        assert isinstance(first, BlockPart)
        context.start_BTC, stream = stream_BTC, first.expand_streams(stream_BTC)
        for block in self.blocks:
            stream, context = block.run(stream, context)  # type: ignore[operator]
        stream_BTC = first.reduce_streams(stream)
        return stream_BTC, self.norm(stream_BTC), context.losses


class _MultiTokenHead(LinearHead):
    """The matrix for the next token, which alone counts as the head's FLOPs and cache."""

    def __init__(self, config: SequentialConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.num_mtp = config.num_mtp

    def flops(self, length: int) -> tuple[float, float]:
        flops = 2.0 * length * self.weight.numel()
        return flops, flops

    def cache_bytes(self) -> tuple[int, int]:
        return 0, 0

    def context(self, model: Transformer, batch: Batch, output: ModelOutput) -> ForwardContext:
        """A fresh one, which continues with the auxiliary losses of `output`."""
        context = model.make_context(batch.tokens, batch.positions, batch.doc_ids)
        context.losses = dict(output.losses)
        return context


class ParallelHeads(_MultiTokenHead):
    """Further token k reads the model's hidden states through blocks of its own and the same matrix W (arXiv:2404.19737):

    logits_k = W norm_k(blocks_k(h));   without blocks: logits_k = W_k h
    """

    def __init__(self, config: MultiTokenHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        numbers = range(config.num_mtp)
        if config.num_blocks:
            self.towers = nn.ModuleList(Tower(config.num_blocks, context) for _ in numbers)
        else:
            self.matrices = nn.ModuleList(LinearHead(config, context) for _ in numbers)
        self.num_blocks = config.num_blocks

    def mtp_outputs(self, model: Transformer, batch: Batch, output: ModelOutput) -> Further:
        if not self.num_blocks:
            yield from ((output.hidden, matrix) for matrix in self.matrices)
            return
        for tower in self.towers:
            _, hidden_BTC, losses = tower(output.hidden, self.context(model, batch, output))
            output.losses.update(losses)
            yield hidden_BTC, self

    def mtp_flops(self, model: Transformer, length: int) -> list[float]:
        if not self.num_blocks:
            return [count_flops(matrix, length)[0] for matrix in self.matrices]
        return [count_flops(tower, length)[0] + self.flops(length)[0] for tower in self.towers]


class SequentialHeads(_MultiTokenHead):
    """Further token k reads the prediction k - 1 and the token that this one predicts (arXiv:2412.19437, section 2.2, equations 21 to 23):

        h^0 = hidden;   h^k_i = block_k(M_k [norm(h^(k-1)_i); norm(E[t_(i+k)])]);   logits_k = W norm_k(h^k)

    E and W are the model's. The last k places of a row lack t_(i+k) and hold nothing of use; their targets do not exist either.
    """

    def __init__(self, config: SequentialConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.steps = nn.ModuleList(_Step(context) for _ in range(config.num_mtp))

    def mtp_outputs(self, model: Transformer, batch: Batch, output: ModelOutput) -> Further:
        stream_BTC = output.hidden
        tokens_BT = batch.targets.clamp(0, model.vocab_size - 1)  # targets that do not count may hold anything
        for step in self.steps:
            context = self.context(model, batch, output)
            stream_BTC, hidden_BTC, losses = step(stream_BTC, model.embedding(tokens_BT, context), context)
            output.losses.update(losses)
            yield hidden_BTC, self
            tokens_BT = torch.cat([tokens_BT[:, 1:], tokens_BT[:, -1:]], dim=1)

    def mtp_flops(self, model: Transformer, length: int) -> list[float]:
        embedded = count_flops(model.embedding, length)[0]
        return [embedded + count_flops(step, length)[0] + self.flops(length)[0] for step in self.steps]


class _Step(nn.Module):
    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        self.stream_norm, self.token_norm = context.make_norm(), context.make_norm()
        self.join = nn.Linear(2 * context.d_model, context.d_model, bias=False)
        self.tower = Tower(1, context)

    def forward(self, stream_BTC: Tensor, token_BTC: Tensor, context: ForwardContext) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        return self.tower(self.join(torch.cat([self.stream_norm(stream_BTC), self.token_norm(token_BTC)], dim=-1)), context)
