"""Vectors to scores: options and names. One file a part or family beside this; factories load torch.

A head is called `(hidden [...,C]) -> logits [...,V]` and predicts the next token. One that can predict further has

    mtp_outputs(model, batch, output) -> Iterable[tuple[hidden_BTC, head_module]]

where `output = model(batch.tokens, …)` for the same batch, and an entry is best made when it is asked for. Entry k, counted from 1, predicts the token k + 1 places after the
input position: of `batch.targets`, position t is to be compared with targets[:, t + k]. `head_module(hidden_BTC)` makes its logits
and may have `plain_weight`, as any head, so `linear_cross_entropy(head_module, hidden_BTC, …)` takes the pair. The caller leaves
out places whose target does not exist, does not count or belongs to another document; only there may hidden states rest on
tokens that are made up. `mtp_flops(model, length) -> list[float]`: forward FLOPs of each entry on one sequence, its logits
included. Entry k may read targets up to place t + k - 1, never the one it predicts. Auxiliary losses of what runs
here are added to `output.losses`: read those afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import LMHeadSpec


class HeadConfig(PartConfig):
    logit_softcap: float = Field(0.0, ge=0.0, description="logits become logit_softcap * tanh(logits / logit_softcap); 0 is off")


class FactorizedHeadConfig(HeadConfig):
    rank: int = Field(128, ge=1, description="width of the reduce_streams space")
    tied: bool = Field(False, description="share the table of embedding factorized, whose rank then counts")


class SequentialConfig(HeadConfig):
    num_mtp: int = Field(1, ge=1, description="tokens after the next one that are predicted too")


class MultiTokenConfig(SequentialConfig):
    num_mtp: int = Field(3, ge=1, description="tokens after the next one that are predicted too")
    num_blocks: int = Field(1, ge=0, description="residual blocks of each future before the shared matrix; 0: a matrix of its own and no block")


def specs() -> Iterable[LMHeadSpec]:
    yield LMHeadSpec(
        "linear", HeadConfig, build="feeb_models.lm_heads.linear:build_linear", summary="A matrix of its own.", equation="logits = W z,   W [V, C] of its own"
    )
    yield LMHeadSpec(
        "tied",
        HeadConfig,
        build="feeb_models.lm_heads.linear:build_tied",
        summary="The embedding's matrix again.",
        reference="arXiv:1608.05859",
        equation="logits = E z      E: the embedding's table",
    )
    yield LMHeadSpec(
        "factorized",
        FactorizedHeadConfig,
        build="feeb_models.lm_heads.factorized:build_factorized",
        summary="Two matrices with a reduce_streams space between; the second may be the table of embedding factorized.",
        reference="arXiv:1909.11942",
        since="1.1",
        equation="logits = E W z      W [rank, C], E [V, rank] of its own or, tied, that of embedding factorized",
    )
    yield LMHeadSpec(
        "ngpt",
        build="feeb_models.lm_heads.ngpt:build_ngpt",
        summary="Cosines with a token's vector, times a learned gain a token.",
        reference="arXiv:2410.01131",
        since="1.1",
        equation="logits_v = s_v cos(z, E_v), s_v learned, 1 at first",
    )
    # what predicts further gets no gradient from the next token's loss, by which the contract judges
    yield LMHeadSpec(
        "multi_token",
        MultiTokenConfig,
        build="feeb_models.lm_heads.multi_token:build_multi_token",
        summary="Several tokens ahead, each from blocks or a matrix of its own; use objective multi_token.",
        reference="arXiv:2404.19737",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   future k = 1 … num_mtp:  logits_k = W norm_k(B_k(z))      num_blocks 0: W_k z",
    )
    yield LMHeadSpec(
        "multi_token_sequential",
        SequentialConfig,
        build="feeb_models.lm_heads.multi_token:build_multi_token_sequential",
        summary="Several tokens ahead, each reading the prediction before it and its token; use objective multi_token.",
        reference="arXiv:2412.19437",
        breaks=("gradient_everywhere", "compile_parity"),
        since="1.1",
        equation="logits = W z;   z^k_t = B_k(M_k [norm(z^{k−1}_t); norm(E[token_{t+k}])]),   logits_k = W norm_k(z^k),   z^0 = z",
    )
