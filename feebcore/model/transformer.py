"""A decoder-only transformer assembled from block parts: embed, place, run the blocks, normalize.

    stream = position.add(embedding(tokens))
    stream = depth(stream)                    blocks, each a block layout of attentions, feedforwards and norms
    hidden = final_norm(stream)               logits = head(hidden), made where they are needed

A block layout whose stream is not [B,T,C] between blocks has `expand_streams(stream_BTC)`, which makes what the first block is given, and
`reduce_streams(…) -> [B,T,C]`, which the final norm and whoever wants the layers see; neither has weights. An embedding that says
`takes_context = True` is called `(tokens, context)`: it may look at the mask and keep tensors in the cache.

The same module trains, scores and generates: packed, left-padded and incremental forms agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feebcore.model.attention import document_block_mask
from feebcore.model.config import TransformerConfig
from feebcore.model.context import Cache, ForwardContext, attention_mask, positions_in_documents
from feebcore.model.counting import count_model
from feebcore.protocols import BlockShape, Counts, ModelOutput

Keep = Callable[[str, int, nn.Module], nn.Module]
"""`keep(kind, layer, module) -> module`"""


class Transformer(nn.Module):
    """See LanguageModel in feebcore/protocols.py. Initialized by its architecture part, not here."""

    def __init__(self, config: TransformerConfig, vocab_size: int, seq_len: int) -> None:
        super().__init__()
        self.config, self.vocab_size, self.seq_len = config, vocab_size, seq_len
        more = getattr(config.stack.config, "all_layers", None)
        self.all_layers = more(config.num_layers) if more else config.num_layers  # a depth may make more than num_layers
        self.embedding = config.embedding.build_with(vocab_size, config.d_model, block=self._shape(0))
        self.position = config.position.build(self._shape(0))
        self.stack = self.make_stack()
        self.expand_streams, self.reduce_streams = stream_maps(self.stack)
        self.final_norm = config.norm.build(config.d_model)
        self.lm_head = config.lm_head.build_with(vocab_size, config.d_model, self.embedding, block=self._shape(0), make_block=self.make_block)

    def forward(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        cache: Cache | None = None,
        want_layers: bool = False,
        local_gradients: bool = False,
    ) -> ModelOutput:
        """hidden [B,T,C] after the final norm.

        positions [B,T]: default: places within each document, or 0..T-1; with a cache, going on from it.
        doc_ids [B,T]: tokens attend within equal ids, -1 is padding; default one document a row, with a cache the row's last.
        want_layers: also the stream after every layer. local_gradients: what layers after the first are given is detached.
        """
        context, positions = self.make_context(tokens_BT, positions, doc_ids, cache)
        context.local_gradients, context.want_layers = local_gradients, want_layers
        stream_BTC = self.position.add(self.embed(tokens_BT, context), positions)
        if self.config.dropout:
            stream_BTC = F.dropout(stream_BTC, self.config.dropout, self.training)
        context.start_BTC = stream_BTC
        streams = self.stack(self.expand_streams(stream_BTC), context)
        if cache is not None:
            cache.finish()
        layers = [self.reduce_streams(stream) for stream in streams] if want_layers else None
        return ModelOutput(self.final_norm(self.reduce_streams(streams[-1])), layers, context.losses)

    def make_context(
        self, tokens_BT: Tensor, positions: Tensor | None = None, doc_ids: Tensor | None = None, cache: Cache | None = None
    ) -> tuple[ForwardContext, Tensor | None]:
        """What blocks are given beside the stream, for arguments as of `forward`, and the positions [B,T] or None for 0..T-1.
        Its start_BTC is still to be set."""
        T = tokens_BT.shape[1]
        if self.seq_len < T:
            raise ValueError(f"{T} tokens a row, but this model was made for seq_len {self.seq_len}")
        mask_BTS = None
        if cache is not None:
            positions, mask_BTS = cache.begin(T, positions, doc_ids)
        elif doc_ids is not None:
            positions = positions_in_documents(doc_ids) if positions is None else positions
            mask_BTS = attention_mask(doc_ids, doc_ids)
        # compiled, the dense mask is then dead code and never made, unless a part reads it
        by_blocks = cache is None and doc_ids is not None and doc_ids.device.type == "cuda" and torch.compiler.is_compiling()
        block_mask = document_block_mask(doc_ids) if by_blocks else None  # type: ignore[arg-type]
        if cache is not None:
            doc_ids = cache.newest_doc_ids()
        dropout = self.config.attention_dropout if self.training else 0.0
        prepared = self.position.prepare(T, positions)
        context = ForwardContext(
            self.position, prepared, mask_BTS, cache, block_mask, tokens_BT=tokens_BT, positions_BT=positions, doc_ids_BT=doc_ids, dropout=dropout
        )
        return context, positions

    def embed(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:
        """[B,T,C]: tokens as vectors, without their places."""
        return self.embedding(tokens_BT, context) if getattr(self.embedding, "takes_context", False) else self.embedding(tokens_BT)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens, padding included."""
        if length > self.seq_len:
            raise ValueError(f"a cache of {length} tokens, but this model was made for seq_len {self.seq_len}")
        return Cache(batch, length, next(self.parameters()).device)

    def count(self) -> Counts:
        return count_model(self, self.seq_len)

    def make_stack(self, keep: Keep = lambda kind, layer, module: module) -> nn.Module:
        """Its blocks, made anew. keep: told of each block, attention, feedforward and norm that is made on the way."""
        return self.config.stack.build_with(self.config.num_layers, lambda layer: self.make_block(layer, keep), block=self._shape(0))

    def make_block(self, layer: int, keep: Keep = lambda kind, layer, module: module) -> nn.Module:
        """One residual block, not initialized; stacks and heads are given this to make theirs."""
        config, shape = self.config, self._shape(layer)
        block = config.block.build_with(
            self._dropped(lambda: keep("attention", layer, config.attention.build(shape))),
            self._dropped(lambda: keep("feedforward", layer, with_optional_context(config.feedforward.build(shape)))),
            lambda dim=config.d_model: keep("norm", layer, config.norm.build(dim)),
            block=shape,
        )
        block.layer = layer
        block.register_forward_pre_hook(detached_where_local)
        return keep("block", layer, block)

    def _shape(self, layer: int) -> BlockShape:
        c = self.config
        position = getattr(self, "position", None)
        return BlockShape(
            c.d_model, c.num_heads, c.width_of_head, self.seq_len, layer, self.all_layers, lambda dim: c.norm.build(dim), position, self.vocab_size
        )

    def _dropped(self, make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        """`make`, with dropout on what the module returns."""
        p = self.config.dropout

        def with_dropout() -> nn.Module:
            module = make()
            module.register_forward_hook(lambda m, _, result: F.dropout(result, p, m.training))
            return module

        return with_dropout if p else make


def stream_maps(depth: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(expand_streams, reduce_streams) of the block layout in `depth`; for most the identity."""
    wide = next((m for m in depth.modules() if hasattr(m, "expand_streams") and hasattr(m, "reduce_streams")), None)
    return (_same, _same) if wide is None else (wide.expand_streams, wide.reduce_streams)  # type: ignore[return-value]


def _same(stream: Tensor) -> Tensor:
    return stream


def detached_where_local(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """With `local_gradients` every block but the first of a pass is given its stream, and what earlier layers share, detached."""
    context = inputs[1] if len(inputs) > 1 else None
    if context is None or not context.local_gradients:
        return None
    if not context.begun:
        context.begun = True
        return None
    context.shared = {key: detached(value) for key, value in context.shared.items()}
    context.start_BTC = detached(context.start_BTC)
    return detached(inputs[0]), *inputs[1:]


def detached(value: Any) -> Any:
    """Tensors in it, lists and tuples included, without their gradient."""
    if isinstance(value, list | tuple):
        return type(value)(detached(v) for v in value)
    return value.detach() if isinstance(value, Tensor) else value


def with_optional_context(feedforward: nn.Module) -> nn.Module:
    """Blocks call `feedforward(x, context)`; one that does not say `takes_context = True` is given x alone."""
    if not getattr(feedforward, "takes_context", False):
        feedforward.register_forward_pre_hook(lambda module, inputs: inputs[:1])
    return feedforward
