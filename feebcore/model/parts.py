"""Base classes of the parts that a transformer is made of. Each method has a default and says who calls it.

All are nn.Modules made by `build(config, context: BuildContext)`. Shapes: B batch, T time, C model width, H heads, D head width, S keys, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feebcore.model.context import ForwardContext
from feebcore.model.counting import ModelPart
from feebcore.protocols import Batch, BuildContext, ModelOutput


class ResidualLinear(nn.Linear):
    """Output projection of a sublayer (o_proj, down_proj), added to the residual stream. Initializations scale it down with depth."""


class AttentionPart(ModelPart):
    """Token mixing: `attention(x [B,T,C], context) -> [B,T,C]`."""

    window: int = 0
    """Tokens that each query sees, itself among them, as passed to `context.attend`; 0: all. Masks are made for it before the blocks run."""
    logit_softcap: float = 0.0
    """Scores become logit_softcap tanh(scores / logit_softcap), as passed to `context.attend`; 0: they stay."""

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        raise NotImplementedError


class FeedforwardPart(ModelPart):
    """Channel mixing: `feedforward(x [B,T,C], context) -> [B,T,C]`. Auxiliary losses go to `context.add_loss`."""

    num_experts: int = 0
    """Experts between which tokens are routed; 0: nothing is routed."""

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        raise NotImplementedError

    def expert_load(self, x_BTC: Tensor) -> dict[str, Tensor]:
        """How an input would be routed, for parts with num_experts: share [E] of the choices, sums to 1; entropy of the shares / ln E;
        dropped, the share of choices beyond an expert's capacity. Changes nothing."""
        raise NotImplementedError


class BlockPart(ModelPart):
    """One residual block: `block(stream, context) -> stream`. Stacks call `run`.

    It makes its attentions and feedforwards with `context.make_attention()`, `make_feedforward()` and `make_norm()` of the BuildContext,
    calls them as `attention(x, context)` and `feedforward(x, context)`, and puts `self.dropout` on what they return.
    Between blocks the stream may be another tensor than [B,T,C], if `expand_streams` and `reduce_streams` say how it is made and read.
    """

    layer: int
    recompute: bool = False
    """Activation checkpointing: activations inside the block are not kept but computed again in the backward pass."""
    returns_context: bool = False
    """See `return_context`."""

    def __init__(self, config: Any, context: BuildContext) -> None:
        super().__init__()
        self.layer = context.layer
        self.dropout = nn.Dropout(context.dropout) if context.dropout else nn.Identity()

    def forward(self, stream: Tensor, context: ForwardContext) -> Tensor:
        raise NotImplementedError

    def expand_streams(self, stream_BTC: Tensor) -> Tensor:
        """What the first block is given, made of the embedded tokens [B,T,C]. Has no weights."""
        return stream_BTC

    def reduce_streams(self, stream: Tensor) -> Tensor:
        """[B,T,C], which the final norm reads, made of what a block returns. Has no weights."""
        return stream

    def run(self, stream: Tensor, context: ForwardContext) -> tuple[Tensor, ForwardContext]:
        """The stream after the block, and the context for the next one: what this block adds to `shared` and `losses` is in that
        context and nowhere else."""
        if context.local_gradients and context.begun:
            stream, context = stream.detach(), context.detached()
        run = self._run_checkpointed if self.recompute else self._run
        stream, shared, losses = run(stream, context)
        return stream, context.after_block(shared, losses)

    def return_context(self) -> None:
        """Have every call return (stream, shared, losses) instead of the stream alone. For sharding, which hands on a copy of a call's
        arguments, the context included, and gathers weights for the gradient of what a call returns."""
        self.returns_context = True
        self.register_forward_hook(lambda block, arguments, stream: (stream, arguments[1].shared, arguments[1].losses))

    def _run_checkpointed(self, stream: Tensor, context: ForwardContext) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        return checkpoint(self._run, stream, context, use_reentrant=False)  # type: ignore[return-value]

    def _run(self, stream: Tensor, context: ForwardContext) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        own = context.for_block()
        if self.returns_context:
            return self(stream, own)  # type: ignore[no-any-return]
        stream = self(stream, own)
        shared = {key: value for key, value in own.shared.items() if value is not context.shared.get(key)}
        losses = {key: value for key, value in own.losses.items() if value is not context.losses.get(key)}
        return stream, shared, losses


class StackPart(ModelPart):
    """How blocks are stacked: `stack(stream, context) -> (streams, context)`: the stream after every layer, `num_streams` of them, and
    the context after the last. Blocks are made with `context.make_block(layer)` of the BuildContext and called with `block.run`."""

    num_streams: int
    """How many streams are returned."""

    def forward(self, stream: Tensor, context: ForwardContext) -> tuple[list[Tensor], ForwardContext]:
        raise NotImplementedError

    def all_blocks(self) -> list[BlockPart]:
        """Every block once, in the order in which they are registered."""
        return [module for module in self.modules() if isinstance(module, BlockPart)]

    def expand_streams(self, stream_BTC: Tensor) -> Tensor:
        """As the blocks' own."""
        return self.all_blocks()[0].expand_streams(stream_BTC)

    def reduce_streams(self, stream: Tensor) -> Tensor:
        """As the blocks' own."""
        return self.all_blocks()[0].reduce_streams(stream)


class EmbeddingPart(ModelPart):
    """Token embedding: `embedding(tokens [B,T], context) -> [B,T,C]`. It may look at the masks and keep tensors in the cache."""

    def forward(self, tokens_BT: Tensor, context: ForwardContext) -> Tensor:
        raise NotImplementedError


class LMHeadPart(ModelPart):
    """Output head: `lm_head(hidden [...,C]) -> logits [...,V]` of the next token.

    A head with MTP outputs (multi-token prediction) overrides `mtp_outputs` and `mtp_flops`.
    """

    num_mtp: int = 0
    """Number of tokens predicted in addition to the next one."""

    @property
    def plain_weight(self) -> Tensor | None:
        """[V,C] where logits are W h and nothing else, for losses that multiply themselves; else None."""
        return None

    def mtp_outputs(self, model: Any, batch: Batch, output: ModelOutput) -> Iterable[tuple[Tensor, nn.Module]]:
        """(hidden [B,T,C], head module) for each MTP output, of `output = model(batch.tokens, …)`.

        Entry k, counted from 1, predicts the token k + 1 places after the input position: of `batch.targets`, position t is to be
        compared with targets[:, t + k]. `head_module(hidden)` makes its logits. Entry k may read targets up to place t + k - 1, never the
        one that it predicts. The caller leaves out places whose target does not exist, does not count or belongs to another document; only
        there may hidden states depend on placeholder tokens. Auxiliary losses of what runs here are added to `output.losses`. An entry is best
        made when it is asked for.
        """
        raise NotImplementedError

    def mtp_flops(self, model: Any, length: int) -> list[float]:
        """Forward FLOPs of each entry of `mtp_outputs` on one sequence, its logits included."""
        raise NotImplementedError


def windows_of(module: nn.Module) -> list[int]:
    """The different windows of the attentions in it, ascending."""
    return sorted({part.window for part in module.modules() if isinstance(part, AttentionPart) and part.window})
