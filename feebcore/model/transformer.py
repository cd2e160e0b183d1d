"""A decoder-only transformer assembled from parts: embed, add positions, run the stack of blocks, normalize.

    stream = position.add(embedding(tokens))
    stream = stack(stream)                    blocks made of attentions, feedforwards and norms
    hidden = final_norm(stream)               logits = lm_head(hidden), made where they are needed

What each part is asked for stands in feebcore/model/parts.py. The same module trains, scores and generates: packed, left-padded and
incremental forms agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from feebcore.model.attention import has_flex_kernel
from feebcore.model.config import StackConfig, TransformerConfig
from feebcore.model.context import Cache, ForwardContext
from feebcore.model.counting import count_model
from feebcore.model.masks import Masks, attention_mask, causal_block_mask, document_block_mask, make_masks, positions_in_documents
from feebcore.model.parts import AttentionPart, BlockPart, EmbeddingPart, LMHeadPart, StackPart, windows_of
from feebcore.model.position import Position
from feebcore.protocols import BuildContext, Counts, ModelOutput

Keep = Callable[[str, int, nn.Module], object]
"""`keep(kind, layer, module)` is told of each block, attention, feedforward and norm that is made."""


class Transformer(nn.Module):
    """See LanguageModel in feebcore/protocols.py. Initialized by its architecture part, not here."""

    def __init__(self, config: TransformerConfig, context: BuildContext) -> None:
        """context: vocab_size and seq_len."""
        super().__init__()
        self.config, self.vocab_size, self.seq_len = config, context.vocab_size, context.seq_len
        options = config.stack.config
        self.all_layers = options.all_layers(config.num_layers) if isinstance(options, StackConfig) else config.num_layers
        self.embedding: EmbeddingPart = config.embedding.build(self.build_context())
        self.position: Position = config.position.build(self.build_context())
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.stack = self.make_stack()
        self.windows = windows_of(self.stack)
        caps = any(isinstance(module, AttentionPart) and module.logit_softcap for module in self.stack.modules())
        self.changes_scores = bool(self.windows) or caps or self.position.has_bias  # plain causal attention has faster kernels
        self.final_norm: nn.Module = self.build_context().make_norm()
        self.lm_head: LMHeadPart = config.lm_head.build(self.build_context(), embedding=self.embedding, make_block=self.make_block)

    def forward(
        self,
        tokens_BT: Tensor,
        positions: Tensor | None = None,
        doc_ids: Tensor | None = None,
        cache: Cache | None = None,
        want_layers: bool = False,
        local_gradients: bool = False,
        masks: Masks | None = None,
    ) -> ModelOutput:
        """hidden [B,T,C] after the final norm.

        positions [B,T]: default: positions within each document, or 0..T-1; with a cache, continuing from it.
        doc_ids [B,T]: tokens attend within equal ids, -1 is padding; default one document a row, with a cache the row's last.
        want_layers: also the stream after every layer. local_gradients: what layers after the first are given is detached.
        masks: of `make_masks(doc_ids)`, where they were made before; not with a cache.
        """
        context = self.make_context(tokens_BT, positions, doc_ids, cache, masks)
        context.local_gradients, context.want_layers = local_gradients, want_layers
        context.start_BTC = stream_BTC = self.dropout(self.position.add(self.embedding(tokens_BT, context), context.positions_BT))
        streams, context = self.stack(self.stack.expand_streams(stream_BTC), context)
        if cache is not None:
            cache.finish()
        layers = [self.stack.reduce_streams(stream) for stream in streams] if want_layers else None
        return ModelOutput(self.final_norm(self.stack.reduce_streams(streams[-1])), layers, context.losses)

    def make_context(
        self, tokens_BT: Tensor, positions: Tensor | None = None, doc_ids: Tensor | None = None, cache: Cache | None = None, masks: Masks | None = None
    ) -> ForwardContext:
        """What parts are given in addition to the stream, for arguments as of `forward`. Its start_BTC is still to be set."""
        T, dense_BTS = tokens_BT.shape[1], None
        if self.seq_len < T:
            raise ValueError(f"{T} tokens per row, but this model was made for seq_len {self.seq_len}")
        if cache is not None:
            positions, dense_BTS = cache.begin(T, positions, doc_ids)
            doc_ids = cache.newest_doc_ids()
            num_keys = cache.num_keys if dense_BTS is None else dense_BTS.shape[2]
            masks = make_masks(T, num_keys, dense_BTS, self.windows, tokens_BT.device)
        elif doc_ids is not None and positions is None:
            positions = positions_in_documents(doc_ids)
        return ForwardContext(
            self.position,
            self.position.prepare(T, positions),
            self.make_masks(T, doc_ids, tokens_BT.device) if masks is None else masks,
            cache,
            tokens_BT,
            positions,
            doc_ids,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )

    def make_masks(self, length: int, doc_ids: Tensor | None, device: torch.device) -> Masks:
        """The masks of a pass over rows of `length` tokens without a cache. doc_ids [B,T]: as of `forward`."""
        by_blocks = has_flex_kernel(device.type)
        if doc_ids is None:
            blocks = causal_block_mask(length, device) if by_blocks and self.changes_scores else None
            return make_masks(length, length, None, self.windows, device, blocks)
        # compiled, the dense mask is then dead code and never made, unless a part reads it
        return make_masks(length, length, attention_mask(doc_ids, doc_ids), self.windows, device, document_block_mask(doc_ids) if by_blocks else None)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens, padding included."""
        if length > self.seq_len:
            raise ValueError(f"a cache of {length} tokens, but this model was made for seq_len {self.seq_len}")
        return Cache(batch, length, next(self.parameters()).device)

    @property
    def num_streams(self) -> int:
        """How many layers `want_layers` gives."""
        return self.stack.num_streams

    def count(self) -> Counts:
        return count_model(self, self.seq_len)

    def build_context(self, layer: int = 0) -> BuildContext:
        """What the model's parts are told of it."""
        c = self.config
        context = BuildContext(
            vocab_size=self.vocab_size,
            seq_len=self.seq_len,
            d_model=c.d_model,
            num_heads=c.num_heads,
            head_dim=c.width_of_head,
            layer=layer,
            num_layers=self.all_layers,
            position=self._modules.get("position"),
            dropout=c.dropout,
        )
        return _with(context, make_norm=lambda dim=c.d_model: c.norm.build(context, d_model=dim))

    def make_stack(self, keep: Keep = lambda kind, layer, module: None) -> StackPart:
        """Its blocks, made anew and not initialized."""
        context = _with(self.build_context(), num_layers=self.config.num_layers, make_block=lambda layer: self.make_block(layer, keep))
        stack: StackPart = self.config.stack.build(context)
        return stack

    def make_block(self, layer: int, keep: Keep = lambda kind, layer, module: None) -> BlockPart:
        """One residual block, not initialized; stacks and heads are given this to make theirs."""
        c, context = self.config, self.build_context(layer)

        def made(kind: str, module: nn.Module) -> nn.Module:
            keep(kind, layer, module)
            return module

        parts = _with(
            context,
            make_attention=lambda: made("attention", c.attention.build(context)),
            make_feedforward=lambda: made("feedforward", c.feedforward.build(context)),
            make_norm=lambda dim=c.d_model: made("norm", context.make_norm(dim)),
        )
        block: BlockPart = c.block.build(parts)
        made("block", block)
        return block


def _with(context: BuildContext, **fields: object) -> BuildContext:
    return dataclasses.replace(context, **fields)  # type: ignore[arg-type]
