"""Heads for multi-token prediction (MTP)."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.lm_heads.options import HeadConfig


class SequentialConfig(HeadConfig):
    num_mtp: int = Field(1, ge=1, description="tokens after the next one that are predicted too")


class MultiTokenHeadConfig(SequentialConfig):
    num_mtp: int = Field(3, ge=1, description="tokens after the next one that are predicted too")
    num_blocks: int = Field(1, ge=0, description="transformer blocks per MTP head before the shared unembedding; 0: a separate unembedding matrix and no block")


# what predicts further gets no gradient from the next token's loss, by which the contract judges
PARTS = (
    feeb.LMHeadSpec(
        "multi_token",
        MultiTokenHeadConfig,
        build=f"{__name__}.multi_token:ParallelHeads",
        summary="Multi-token prediction, in parallel: each further token from blocks or a matrix of its own; use objective multi_token.",
        reference="arXiv:2404.19737",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   further token k = 1 … num_mtp:  logits_k = W norm_k(B_k(z))      num_blocks 0: W_k z",
    ),
    feeb.LMHeadSpec(
        "multi_token_sequential",
        SequentialConfig,
        build=f"{__name__}.multi_token:SequentialHeads",
        summary="Multi-token prediction, sequential (DeepSeek-V3): each reads the prediction before it and its token; use objective multi_token.",
        reference="arXiv:2412.19437",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   z^k_t = B_k(M_k [norm(z^{k−1}_t); norm(E[token_{t+k}])]),   logits_k = W norm_k(z^k),   z^0 = z",
    ),
)
