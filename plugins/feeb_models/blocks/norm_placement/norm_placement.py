"""Norms at other places than before attention a and feedforward m."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.blocks.norm_placement import LayerScaleConfig, NgptConfig, ResidualScaleConfig
from feeb_models.normalized_linear import LearnedScale, l2_normalize
from feebcore.config import NoOptions, PartConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import BlockPart
from feebcore.protocols import BuildContext


class PostNorm(BlockPart):
    """r = norm(s r + a(r)); r = norm(s r + m(r)), s = 1: the original transformer."""

    scale: float = 1.0

    def __init__(self, config: PartConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention, self.attention_norm = context.make_attention(), context.make_norm()
        self.feedforward, self.feedforward_norm = context.make_feedforward(), context.make_norm()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = self.attention_norm(self.scale * stream_BTC + self.dropout(self.attention(stream_BTC, context)))
        return self.feedforward_norm(self.scale * stream_BTC + self.dropout(self.feedforward(stream_BTC, context)))


class DeepNorm(PostNorm):
    """Post-norm with s = (2L)^(1/4) (arXiv:2203.00555)."""

    def __init__(self, config: ResidualScaleConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.scale = config.scale or (2 * context.num_layers) ** 0.25


class Sandwich(BlockPart):
    """r += norm(a(norm(r))); r += norm(m(norm(r)))."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.stream_norm = context.make_norm() if self.norms_stream(context) else nn.Identity()
        self.attention_norm, self.attention, self.attention_out_norm = context.make_norm(), context.make_attention(), context.make_norm()
        self.feedforward_norm, self.feedforward, self.feedforward_out_norm = context.make_norm(), context.make_feedforward(), context.make_norm()

    def norms_stream(self, context: BuildContext) -> bool:
        return False

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = self.stream_norm(stream_BTC)
        stream_BTC = stream_BTC + self.attention_out_norm(self.dropout(self.attention(self.attention_norm(stream_BTC), context)))
        return stream_BTC + self.feedforward_out_norm(self.dropout(self.feedforward(self.feedforward_norm(stream_BTC), context)))


class PeriNorm(Sandwich):
    """As Sandwich, and r = norm(r) before all else at the first block (arXiv:2502.02732); if that is looped, at every pass."""

    def norms_stream(self, context: BuildContext) -> bool:
        return context.layer == 0


class OutputNorm(BlockPart):
    """r += norm(a(r)); r += norm(m(r))."""

    def __init__(self, config: NoOptions, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention, self.attention_norm = context.make_attention(), context.make_norm()
        self.feedforward, self.feedforward_norm = context.make_feedforward(), context.make_norm()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.attention_norm(self.dropout(self.attention(stream_BTC, context)))
        return stream_BTC + self.feedforward_norm(self.dropout(self.feedforward(stream_BTC, context)))


class LayerScale(BlockPart):
    """r += g a(norm(r)); r += h m(norm(r)), with g and h [C] learned, small at first."""

    def __init__(self, config: LayerScaleConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention_norm, self.attention = context.make_norm(), context.make_attention()
        self.feedforward_norm, self.feedforward = context.make_norm(), context.make_feedforward()
        self.attention_scale = nn.Parameter(torch.full((context.d_model,), config.init_value))
        self.feedforward_scale = nn.Parameter(torch.full((context.d_model,), config.init_value))

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.attention_scale * self.dropout(self.attention(self.attention_norm(stream_BTC), context))
        return stream_BTC + self.feedforward_scale * self.dropout(self.feedforward(self.feedforward_norm(stream_BTC), context))


class Ngpt(BlockPart):
    """r = u(r + alpha (u(a(r)) - r)); r = u(r + beta (u(m(r)) - r)), u(x) = x / |x|, alpha and beta [C] learned (arXiv:2410.01131,
    equations 10 and 11). The embedded tokens are normed by u too; the model's norm is not used."""

    def __init__(self, config: NgptConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.attention, self.feedforward = context.make_attention(), context.make_feedforward()
        self.attention_step = LearnedScale(context.d_model, config.init_value, context.d_model**-0.5)
        self.feedforward_step = LearnedScale(context.d_model, config.init_value, context.d_model**-0.5)

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = l2_normalize(stream_BTC)  # changes nothing after another such block
        stream_BTC = l2_normalize(stream_BTC + self.attention_step() * (l2_normalize(self.dropout(self.attention(stream_BTC, context))) - stream_BTC))
        return l2_normalize(stream_BTC + self.feedforward_step() * (l2_normalize(self.dropout(self.feedforward(stream_BTC, context))) - stream_BTC))
