"""How attention, feedforward and norms stand around the stream: options and names. One file a part or family beside this; factories load torch.

In summaries r is the stream, a attention, m the feedforward, ln the model's norm.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import BlockSpec


class ResidualScaleConfig(PartConfig):
    scale: float | None = Field(None, gt=0, description="s in ln(s r + a(r)); default (2 num_layers)^(1/4)")


class LayerScaleConfig(PartConfig):
    initial: float = Field(0.1, gt=0, description="the gains at first; the paper takes 0.1 for up to 18 layers, 1e-5 for 24, 1e-6 beyond")


class ResidualLambdasConfig(PartConfig):
    stream: float = Field(1.0, description="l0 at first")
    start: float = Field(0.0, description="l1 at first")


class NgptConfig(PartConfig):
    initial: float = Field(0.05, gt=0, description="the step sizes at first; about 1 / num_layers")


class HyperConnectionsConfig(PartConfig):
    num_streams: int = Field(4, ge=1, description="copies of the stream, mixed anew before attention and before feedforward")
    dynamic: bool = Field(True, description="the mix depends on the token; false: it is the same for all tokens")


def specs() -> Iterable[BlockSpec]:
    yield BlockSpec(
        "prenorm",
        build="feeb_models.blocks.basic:build_prenorm",
        summary="Attention, then feedforward, each on the normed stream.",
        reference="arXiv:2002.04745",
        equation="u = r + a(norm r);   r' = u + m(norm u)",
    )
    yield BlockSpec(
        "parallel",
        build="feeb_models.blocks.basic:build_parallel",
        summary="Attention and feedforward side by side on one normed stream.",
        reference="https://github.com/kingoflolz/mesh-transformer-jax",
        equation="r' = r + a(x) + m(x),   x = norm r",
    )
    yield from _norm_places()
    yield from _stream_changes()
    yield from _mixed_streams()


def _norm_places() -> Iterable[BlockSpec]:
    places = "feeb_models.blocks.norm_places"
    yield BlockSpec(
        "postnorm",
        build=f"{places}:build_postnorm",
        summary="The original transformer: ln(r + a(r)), then so with m.",
        reference="arXiv:1706.03762",
        since="1.1",
        equation="u = norm(r + a(r));   r' = norm(u + m(u))",
    )
    yield BlockSpec(
        "deepnorm",
        ResidualScaleConfig,
        build=f"{places}:build_deepnorm",
        summary="Post-norm with a larger stream: ln(s r + a(r)), then so with m, s = (2 num_layers)^(1/4).",
        reference="arXiv:2203.00555",
        since="1.1",
        equation="u = norm(s r + a(r));   r' = norm(s u + m(u)),   s = (2 L)^(1/4)",
    )
    yield BlockSpec(
        "sandwich",
        build=f"{places}:build_sandwich",
        summary="A norm on both sides: r + ln(a(ln r)), then so with m.",
        reference="arXiv:2105.13290",
        since="1.1",
        equation="u = r + norm(a(norm r));   r' = u + norm(m(norm u))",
    )
    yield BlockSpec(
        "perinorm",
        build=f"{places}:build_perinorm",
        summary="A norm on both sides, r + ln(a(ln r)), then so with m, and one on the embedded tokens.",
        reference="arXiv:2502.02732",
        since="1.1",
        equation="as sandwich; layer 0 begins with r ← norm r",
    )
    yield BlockSpec(
        "output_norm",
        build=f"{places}:build_output_norm",
        summary="A norm on what is added: r + ln(a(r)), then so with m.",
        reference="arXiv:2501.00656",
        since="1.1",
        equation="u = r + norm(a(r));   r' = u + norm(m(u))",
    )
    yield BlockSpec(
        "ngpt",
        NgptConfig,
        build=f"{places}:build_ngpt",
        summary="On the unit sphere: u(r + alpha (u(a(r)) - r)), then so with m; u(x) = x / |x|, alpha learned a channel.",
        reference="arXiv:2410.01131",
        since="1.1",
        equation="r = u(r);  r = u(r + α (u(a(r)) − r));  r = u(r + β (u(m(r)) − r)), u(x) = x / |x|, α and β [C] learned",
    )
    yield BlockSpec(
        "layerscale",
        LayerScaleConfig,
        build=f"{places}:build_layerscale",
        summary="Pre-norm with a learned gain a channel on what is added: r + g a(ln r), then so with m.",
        reference="arXiv:2103.17239",
        since="1.1",
        equation="u = r + g * a(norm r);   r' = u + h * m(norm u)      g, h [C] learned, `initial` at first",
    )


def _stream_changes() -> Iterable[BlockSpec]:
    changes = "feeb_models.blocks.stream_changes"
    yield BlockSpec(
        "product",
        build=f"{changes}:build_product",
        summary="Attention times feedforward: r + a(x) m(x), x = ln r.",
        since="1.1",
        equation="r' = r + a(x) * m(x),   x = norm r",
    )
    yield BlockSpec(
        "multiplied_attention",
        build=f"{changes}:build_multiplied_attention",
        summary="y = r a(ln r), then y + m(ln y); in deep models take initialization fan_in.",
        since="1.1",
        equation="u = r * a(norm r);   r' = u + m(norm u)",
    )
    yield BlockSpec(
        "affine_attention",
        build=f"{changes}:build_affine_attention",
        summary="Two attentions, y = r a2(ln r) + a(ln r), then y + m(ln y).",
        since="1.1",
        equation="u = r * a2(x) + a(x),   x = norm r;   r' = u + m(norm u)",
    )
    yield BlockSpec(
        "multiplied_feedforward",
        build=f"{changes}:build_multiplied_feedforward",
        summary="y = r + a(ln r), then y m(ln y); in deep models take initialization fan_in.",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m(norm u)",
    )
    yield BlockSpec(
        "affine_feedforward",
        build=f"{changes}:build_affine_feedforward",
        summary="Two feedforwards: y = r + a(ln r), then y m2(ln y) + m(ln y).",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m2(z) + m(z),   z = norm u",
    )
    yield BlockSpec(
        "normed_residual",
        build=f"{changes}:build_normed_residual",
        summary="The stream is normed itself: y = x + a(x), x = ln r, then y + m(ln y).",
        since="1.1",
        equation="u = x + a(x),   x = norm r;   r' = u + m(norm u)",
    )
    yield BlockSpec(
        "attention_through_feedforward",
        build=f"{changes}:build_attention_through_feedforward",
        summary="Only the feedforward writes to the stream: r + m(ln(r + a(ln r))).",
        since="1.1",
        equation="u = r + a(norm r);   r' = r + m(norm u)",
    )
    yield BlockSpec(
        "normed_branch",
        build=f"{changes}:build_normed_branch",
        summary="The feedforward is added to the normed stream: x + m(ln y), x = ln r, y = r + a(x).",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = x + m(norm u)",
    )
    yield BlockSpec(
        "sum_of_norms",
        build=f"{changes}:build_sum_of_norms",
        summary="The feedforward reads two normed streams: y + m(x + ln y), x = ln r, y = r + a(x).",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = u + m(x + norm u)",
    )
    yield BlockSpec(
        "no_stream",
        build=f"{changes}:build_no_stream",
        summary="No stream: a(x) + m(x), x = ln r, is all that the next block sees.",
        since="1.1",
        equation="r' = a(x) + m(x),   x = norm r",
    )


def _mixed_streams() -> Iterable[BlockSpec]:
    mixed = "feeb_models.blocks.mixed_streams"
    yield BlockSpec(
        "residual_lambdas",
        ResidualLambdasConfig,
        build=f"{mixed}:build_residual_lambdas",
        summary="Pre-norm on l0 r + l1 s, s the stream before the first block, l0 and l1 learned.",
        reference="https://github.com/KellerJordan/modded-nanogpt",
        since="1.1",
        equation="v = λ0 r + λ1 r_0;   u = v + a(norm v);   r' = u + m(norm u)      r_0: the stream before the first block",
    )
    yield BlockSpec(
        "hyper_connections",
        HyperConnectionsConfig,
        build=f"{mixed}:build_hyper_connections",
        summary="Several streams, from which every sublayer reads a learned mix and to which it writes with learned weights.",
        reference="arXiv:2409.19606",
        since="1.1",
        equation="for f = a, then f = m:   x = Σ_n α_n R_n;   R'_j = Σ_n A_nj R_n + β_j f(norm x)      R_1 … R_N: N = num_streams streams\n"
        "dynamic: α, A += s tanh(W norm R_n), β += s' tanh(w·norm R_n) for each n;   at the end r = Σ_n R_n",
    )
