"""Gated delta rule: a linear recurrence in place of attention."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

import feebcore as feeb


class GatedDeltaConfig(feeb.PartConfig):
    value_dim: int | None = Field(None, ge=1, description="dimensions of a head's value; default head_dim, the paper takes twice as many")
    conv_kernel_size: int = Field(
        4, ge=1, description="tokens, the current one among them, that a short causal convolution mixes into queries, keys and values; 1: none"
    )
    chunk: int = Field(64, ge=1, description="tokens that are computed in parallel; changes cost, not the result")
    inert = ("attention_dropout", "context.window")  # it has no attention weights, and its state no window
    example: ClassVar[dict[str, Any]] = {"chunk": 5}  # so that a short row has several


PART = feeb.AttentionSpec(
    "gated_delta",
    GatedDeltaConfig,
    build=f"{__name__}.gated_delta:GatedDelta",
    summary="Gated DeltaNet: linear attention with a gated delta rule; constant-size recurrent state instead of a KV cache.",
    reference="arXiv:2412.06464",
    since="1.1",
    breaks=("attention_weights_sum_to_one",),
    equation="S_t = a_t S_{t−1} + k_t (b_t (v_t − a_t S_{t−1}ᵀ k_t))ᵀ, o_t = S_tᵀ q_t, y = W_out (rms(o) gain * silu(W_g x)), per head\n"
    "q, k, v = silu(conv(W x)), q and k of unit norm;  a = exp(−A softplus(W_a x + d)), b = σ(W_b x)",
)
