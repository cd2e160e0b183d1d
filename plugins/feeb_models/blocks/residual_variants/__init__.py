"""Blocks that multiply, normalize or leave out the residual stream.

In summaries r is the stream, a attention, m the feedforward, ln the model's norm.
"""

from __future__ import annotations

import feebcore as feeb

BLOCKS = f"{__name__}.residual_variants"

PARTS = (
    feeb.BlockSpec(
        "product",
        build=f"{BLOCKS}:Product",
        summary="Attention times feedforward: r + a(x) m(x), x = ln r.",
        since="1.1",
        equation="r' = r + a(x) * m(x),   x = norm r",
    ),
    feeb.BlockSpec(
        "multiplied_attention",
        build=f"{BLOCKS}:MultipliedAttention",
        summary="y = r a(ln r), then y + m(ln y); in deep models take initialization fan_in.",
        since="1.1",
        equation="u = r * a(norm r);   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "affine_attention",
        build=f"{BLOCKS}:AffineAttention",
        summary="Two attentions, y = r a2(ln r) + a(ln r), then y + m(ln y).",
        since="1.1",
        equation="u = r * a2(x) + a(x),   x = norm r;   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "multiplied_feedforward",
        build=f"{BLOCKS}:MultipliedFeedforward",
        summary="y = r + a(ln r), then y m(ln y); in deep models take initialization fan_in.",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m(norm u)",
    ),
    feeb.BlockSpec(
        "affine_feedforward",
        build=f"{BLOCKS}:AffineFeedforward",
        summary="Two feedforwards: y = r + a(ln r), then y m2(ln y) + m(ln y).",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m2(z) + m(z),   z = norm u",
    ),
    feeb.BlockSpec(
        "normed_residual",
        build=f"{BLOCKS}:NormedResidual",
        summary="The stream is normed itself: y = x + a(x), x = ln r, then y + m(ln y).",
        since="1.1",
        equation="u = x + a(x),   x = norm r;   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "attention_through_feedforward",
        build=f"{BLOCKS}:AttentionThroughFeedforward",
        summary="Only the feedforward writes to the stream: r + m(ln(r + a(ln r))).",
        since="1.1",
        equation="u = r + a(norm r);   r' = r + m(norm u)",
    ),
    feeb.BlockSpec(
        "normed_branch",
        build=f"{BLOCKS}:NormedBranch",
        summary="The feedforward is added to the normed stream: x + m(ln y), x = ln r, y = r + a(x).",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = x + m(norm u)",
    ),
    feeb.BlockSpec(
        "sum_of_norms",
        build=f"{BLOCKS}:SumOfNorms",
        summary="The feedforward reads two normed streams: y + m(x + ln y), x = ln r, y = r + a(x).",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = u + m(x + norm u)",
    ),
    feeb.BlockSpec(
        "no_stream",
        build=f"{BLOCKS}:NoStream",
        summary="No stream: a(x) + m(x), x = ln r, is all that the next block sees.",
        since="1.1",
        equation="r' = a(x) + m(x),   x = norm r",
    ),
)
