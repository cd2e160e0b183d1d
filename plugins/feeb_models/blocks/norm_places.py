"""Where the norms stand around attention a and feedforward m; prenorm is in basic.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.blocks import LayerScaleConfig, NgptConfig, ResidualScaleConfig
from feeb_models.blocks.basic import Make
from feeb_models.sphere import LearnedScale, unit
from feebcore.config import NoOptions
from feebcore.model.context import ForwardContext
from feebcore.protocols import BlockShape


class PostNorm(nn.Module):
    """r = norm(s r + a(r)); r = norm(s r + m(r)). s = 1 is the original transformer, s = (2L)^(1/4) DeepNorm."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make, scale: float) -> None:
        super().__init__()
        self.attention, self.attention_norm = make_attention(), make_norm()
        self.feedforward, self.feedforward_norm = make_feedforward(), make_norm()
        self.scale = scale

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = self.attention_norm(self.scale * stream_BTC + self.attention(stream_BTC, context))
        return self.feedforward_norm(self.scale * stream_BTC + self.feedforward(stream_BTC, context))


class Sandwich(nn.Module):
    """r += norm(a(norm(r))); r += norm(m(norm(r))). With `first`, r = norm(r) before all else, as Peri-LN does once, at the
    first block (arXiv:2502.02732); a first block that is looped does it at every pass."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make, first: bool) -> None:
        super().__init__()
        self.stream_norm = make_norm() if first else nn.Identity()
        self.attention_norm, self.attention, self.attention_out_norm = make_norm(), make_attention(), make_norm()
        self.feedforward_norm, self.feedforward, self.feedforward_out_norm = make_norm(), make_feedforward(), make_norm()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = self.stream_norm(stream_BTC)
        stream_BTC = stream_BTC + self.attention_out_norm(self.attention(self.attention_norm(stream_BTC), context))
        return stream_BTC + self.feedforward_out_norm(self.feedforward(self.feedforward_norm(stream_BTC), context))


class OutputNorm(nn.Module):
    """r += norm(a(r)); r += norm(m(r))."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make) -> None:
        super().__init__()
        self.attention, self.attention_norm = make_attention(), make_norm()
        self.feedforward, self.feedforward_norm = make_feedforward(), make_norm()

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.attention_norm(self.attention(stream_BTC, context))
        return stream_BTC + self.feedforward_norm(self.feedforward(stream_BTC, context))


class LayerScale(nn.Module):
    """r += g a(norm(r)); r += h m(norm(r)), with g and h [C] learned, small at first."""

    def __init__(self, make_attention: Make, make_feedforward: Make, make_norm: Make, d_model: int, initial: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(), make_attention()
        self.feedforward_norm, self.feedforward = make_norm(), make_feedforward()
        self.attention_scale = nn.Parameter(torch.full((d_model,), initial))
        self.feedforward_scale = nn.Parameter(torch.full((d_model,), initial))

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = stream_BTC + self.attention_scale * self.attention(self.attention_norm(stream_BTC), context)
        return stream_BTC + self.feedforward_scale * self.feedforward(self.feedforward_norm(stream_BTC), context)


class Ngpt(nn.Module):
    """r = u(r + alpha (u(a(r)) - r)); r = u(r + beta (u(m(r)) - r)), u(x) = x / |x|, alpha and beta [C] learned (arXiv:2410.01131,
    equations 10 and 11). The embedded tokens are normed by u too; the model's norm is not used."""

    def __init__(self, make_attention: Make, make_feedforward: Make, d_model: int, initial: float) -> None:
        super().__init__()
        self.attention, self.feedforward = make_attention(), make_feedforward()
        self.attention_step = LearnedScale(d_model, initial, d_model**-0.5)
        self.feedforward_step = LearnedScale(d_model, initial, d_model**-0.5)

    def forward(self, stream_BTC: Tensor, context: ForwardContext) -> Tensor:
        stream_BTC = unit(stream_BTC)  # changes nothing after another such block
        stream_BTC = unit(stream_BTC + self.attention_step() * (unit(self.attention(stream_BTC, context)) - stream_BTC))
        return unit(stream_BTC + self.feedforward_step() * (unit(self.feedforward(stream_BTC, context)) - stream_BTC))


def build_postnorm(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return PostNorm(make_attention, make_feedforward, make_norm, 1.0)


def build_deepnorm(config: ResidualScaleConfig, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> nn.Module:
    return PostNorm(make_attention, make_feedforward, make_norm, config.scale or (2 * block.num_layers) ** 0.25)


def build_sandwich(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return Sandwich(make_attention, make_feedforward, make_norm, first=False)


def build_perinorm(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> nn.Module:
    return Sandwich(make_attention, make_feedforward, make_norm, first=block.layer == 0)


def build_output_norm(config: NoOptions, make_attention: Make, make_feedforward: Make, make_norm: Make) -> nn.Module:
    return OutputNorm(make_attention, make_feedforward, make_norm)


def build_layerscale(config: LayerScaleConfig, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> nn.Module:
    return LayerScale(make_attention, make_feedforward, make_norm, block.d_model, config.initial)


def build_ngpt(config: NgptConfig, make_attention: Make, make_feedforward: Make, make_norm: Make, block: BlockShape) -> nn.Module:
    return Ngpt(make_attention, make_feedforward, block.d_model, config.initial)
