"""Norms at other places than before attention and feedforward.

In summaries r is the stream, a attention, m the feedforward, ln the model's norm.
"""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class ResidualScaleConfig(feeb.PartConfig):
    scale: float | None = Field(None, gt=0, description="s in ln(s r + a(r)); default (2 num_layers)^(1/4)")


class LayerScaleConfig(feeb.PartConfig):
    init_value: float = Field(0.1, gt=0, description="initial value of the gains; the paper takes 0.1 for up to 18 layers, 1e-5 for 24, 1e-6 beyond")


class NgptConfig(feeb.PartConfig):
    init_value: float = Field(0.05, gt=0, description="initial value of the step sizes; about 1 / num_layers")


BLOCKS = f"{__name__}.norm_placement"

PARTS = (
    feeb.BlockSpec(
        "postnorm",
        build=f"{BLOCKS}:PostNorm",
        summary="Post-norm (original transformer): norm(x + sublayer(x)) for attention, then for the MLP.",
        reference="arXiv:1706.03762",
        since="1.1",
        equation="u = norm(r + a(r));   r' = norm(u + m(u))",
    ),
    feeb.BlockSpec(
        "deepnorm",
        ResidualScaleConfig,
        build=f"{BLOCKS}:DeepNorm",
        summary="DeepNorm: post-norm with the skip connection scaled up, norm(s * x + sublayer(x)), s = (2 num_layers)^(1/4).",
        reference="arXiv:2203.00555",
        since="1.1",
        equation="u = norm(s r + a(r));   r' = norm(s u + m(u)),   s = (2 L)^(1/4)",
    ),
    feeb.BlockSpec(
        "sandwich",
        build=f"{BLOCKS}:Sandwich",
        summary="Sandwich norm: x + norm(sublayer(norm(x))), a norm before and after each sublayer.",
        reference="arXiv:2105.13290",
        since="1.1",
        equation="u = r + norm(a(norm r));   r' = u + norm(m(norm u))",
    ),
    feeb.BlockSpec(
        "perinorm",
        build=f"{BLOCKS}:PeriNorm",
        summary="Peri-LN: sandwich norm plus a norm on the token embeddings.",
        reference="arXiv:2502.02732",
        since="1.1",
        equation="as sandwich; layer 0 begins with r ← norm r",
    ),
    feeb.BlockSpec(
        "output_norm",
        build=f"{BLOCKS}:OutputNorm",
        summary="Reordered norm (OLMo 2): x + norm(sublayer(x)), the norm only on the sublayer output.",
        reference="arXiv:2501.00656",
        since="1.1",
        equation="u = r + norm(a(r));   r' = u + norm(m(u))",
    ),
    feeb.BlockSpec(
        "ngpt",
        NgptConfig,
        build=f"{BLOCKS}:Ngpt",
        summary="nGPT block: hidden states on the unit sphere, moved towards each sublayer output by a learned step size per channel.",
        reference="arXiv:2410.01131",
        since="1.1",
        equation="r = u(r);  r = u(r + α (u(a(r)) − r));  r = u(r + β (u(m(r)) − r)), u(x) = x / |x|, α and β [C] learned",
    ),
    feeb.BlockSpec(
        "layerscale",
        LayerScaleConfig,
        build=f"{BLOCKS}:LayerScale",
        summary="LayerScale: pre-norm with a learned scale per channel on each sublayer output.",
        reference="arXiv:2103.17239",
        since="1.1",
        equation="u = r + g * a(norm r);   r' = u + h * m(norm u)      g, h [C] learned, init_value at first",
    ),
)
