"""Heads for multi-token prediction (MTP)."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_models.lm_heads.options import HeadConfig


class SequentialConfig(HeadConfig):
    num_mtp: int = Field(1, ge=1, description="number of tokens predicted in addition to the next one")


class MultiTokenHeadConfig(SequentialConfig):
    num_mtp: int = Field(3, ge=1, description="number of tokens predicted in addition to the next one")
    num_blocks: int = Field(1, ge=0, description="transformer blocks per MTP head before the shared unembedding; 0: a separate unembedding matrix and no block")


# MTP heads get no gradient from the next token's loss, by which the contract judges
PARTS = (
    feeb.LMHeadSpec(
        "multi_token",
        MultiTokenHeadConfig,
        build=f"{__name__}.multi_token:ParallelHeads",
        summary="Parallel multi-token prediction (MTP): separate blocks or a separate unembedding matrix per additional token; use objective multi_token.",
        reference="arXiv:2404.19737",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   MTP output k = 1 … num_mtp:  logits_k = W norm_k(B_k(z))      num_blocks 0: W_k z",
    ),
    feeb.LMHeadSpec(
        "multi_token_sequential",
        SequentialConfig,
        build=f"{__name__}.multi_token:SequentialHeads",
        summary="Sequential multi-token prediction (MTP, DeepSeek-V3): each MTP module reads the previous one's hidden state and the next token; use objective multi_token.",
        reference="arXiv:2412.19437",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   z^k_t = B_k(M_k [norm(z^{k−1}_t); norm(E[token_{t+k}])]),   logits_k = W norm_k(z^k),   z^0 = z",
    ),
)
