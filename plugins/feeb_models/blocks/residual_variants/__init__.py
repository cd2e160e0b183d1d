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
        summary="Ablation: parallel block whose attention and MLP outputs are multiplied: x + attn(norm(x)) * mlp(norm(x)).",
        since="1.1",
        equation="r' = r + a(x) * m(x),   x = norm r",
    ),
    feeb.BlockSpec(
        "multiplied_attention",
        build=f"{BLOCKS}:MultipliedAttention",
        summary="Ablation: the residual stream is multiplied by the attention output instead of added to it; use initialization fan_in in deep models.",
        since="1.1",
        equation="u = r * a(norm r);   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "affine_attention",
        build=f"{BLOCKS}:AffineAttention",
        summary="Ablation: affine attention residual: x * attn2(norm(x)) + attn(norm(x)), then a pre-norm MLP.",
        since="1.1",
        equation="u = r * a2(x) + a(x),   x = norm r;   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "multiplied_feedforward",
        build=f"{BLOCKS}:MultipliedFeedforward",
        summary="Ablation: the residual stream is multiplied by the MLP output instead of added to it; use initialization fan_in in deep models.",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m(norm u)",
    ),
    feeb.BlockSpec(
        "affine_feedforward",
        build=f"{BLOCKS}:AffineFeedforward",
        summary="Ablation: affine MLP residual: pre-norm attention, then x * mlp2(norm(x)) + mlp(norm(x)).",
        since="1.1",
        equation="u = r + a(norm r);   r' = u * m2(z) + m(z),   z = norm u",
    ),
    feeb.BlockSpec(
        "normed_residual",
        build=f"{BLOCKS}:NormedResidual",
        summary="Ablation: normalized skip connection: norm(x) + attn(norm(x)), then a pre-norm MLP.",
        since="1.1",
        equation="u = x + a(x),   x = norm r;   r' = u + m(norm u)",
    ),
    feeb.BlockSpec(
        "attention_through_feedforward",
        build=f"{BLOCKS}:AttentionThroughFeedforward",
        summary="Ablation: attention reaches the residual stream only through the MLP: x + mlp(norm(x + attn(norm(x)))).",
        since="1.1",
        equation="u = r + a(norm r);   r' = r + m(norm u)",
    ),
    feeb.BlockSpec(
        "normed_branch",
        build=f"{BLOCKS}:NormedBranch",
        summary="Ablation: the MLP skip connection starts at the normalized block input: norm(x) + mlp(norm(x + attn(norm(x)))).",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = x + m(norm u)",
    ),
    feeb.BlockSpec(
        "sum_of_norms",
        build=f"{BLOCKS}:SumOfNorms",
        summary="Ablation: the MLP reads the sum of the normalized block input and the normalized attention result.",
        since="1.1",
        equation="u = r + a(x),   x = norm r;   r' = u + m(x + norm u)",
    ),
    feeb.BlockSpec(
        "no_stream",
        build=f"{BLOCKS}:NoStream",
        summary="Ablation: no residual connection: the block returns attn(norm(x)) + mlp(norm(x)).",
        since="1.1",
        equation="r' = a(x) + m(x),   x = norm r",
    ),
)
