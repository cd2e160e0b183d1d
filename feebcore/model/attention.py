"""softmax(q k^T / sqrt(D)) v for grouped heads, in the form that is fastest where it runs.

In bf16 on a CPU, compiled and up to 512 keys, the products are written out: torch.compile fuses mask, softmax and casts
into one pass, and forward plus backward is then 2-4 times faster than the CPU's flash kernel (with AMX). In fp32 that
kernel skips what is masked and wins: with AVX2, compiled, 24 ms instead of 31 at T 128, 72 instead of 85 at 256, 135
instead of 146 at 512; uncompiled it needs a half, and a third without gradients. Elsewhere it is the fastest anyway.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from feebcore.model.constant_result import constant_result

LONGEST_EXPLICIT = 512
BiasOf = Callable[[Tensor, Tensor], Tensor | None]


def attend(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    mask_BTS: Tensor | None = None,
    logit_softcap: float = 0.0,
    block_mask: Any = None,
    bias_HTS: Tensor | None = None,
    dropout: float = 0.0,
    score_scale: float = 1.0,
    bias_of: BiasOf | None = None,
) -> Tensor:
    """[B,H,T,D]. Query head h reads key head h // (H / G). mask_BTS: True = may see; None = causal (T = S), or
    everything (T = 1). logit_softcap: scores become logit_softcap * tanh(scores / logit_softcap); 0 leaves them. block_mask: what mask_BTS
    says as `document_block_mask` does; wins over it. bias_HTS: added to the scores, after the cap. Values may be wider or
    narrower than keys; the result is as wide as they are. dropout: share of the weights that is set to 0, the others grow; not with block_mask. score_scale: scores are score_scale / sqrt(D) q k^T. bias_of: with block_mask, in place of bias_HTS, by head and distance (`Position.bias_of`)."""
    if block_mask is not None:
        assert not dropout
        return _by_blocks(q_BHTD, k_BGSD, v_BGSD, block_mask, logit_softcap, bias_HTS, score_scale, bias_of)
    assert mask_BTS is not None or q_BHTD.shape[2] in (1, k_BGSD.shape[2])
    if logit_softcap or _explicit_is_faster(q_BHTD, k_BGSD, v_BGSD):
        return _explicit(q_BHTD, k_BGSD, v_BGSD, mask_BTS, logit_softcap, bias_HTS, dropout, score_scale)
    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    if grouped and q_BHTD.device.type == "cpu":  # its flash kernel knows no groups
        k_BGSD, v_BGSD = (x.repeat_interleave(q_BHTD.shape[1] // x.shape[1], dim=1) for x in (k_BGSD, v_BGSD))
        grouped = False
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    causal = mask_BTS is None and q_BHTD.shape[2] > 1
    if bias_HTS is not None:  # the kernels take one mask: what may not be seen becomes -inf in the bias
        mask_B1TS, causal = _hidden(bias_HTS[None], mask_BTS).to(q_BHTD.dtype), False
    scale = score_scale * q_BHTD.shape[3] ** -0.5 if score_scale != 1.0 else None
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, mask_B1TS, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped)


def attention_weights(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    mask_BTS: Tensor | None = None,
    logit_softcap: float = 0.0,
    bias_HTS: Tensor | None = None,
    dropout: float = 0.0,
    score_scale: float = 1.0,
) -> Tensor:
    """[B,H,T,S] fp32, rows that sum to 1 (before dropout): what `attend` multiplies the values with, for parts that use the weights
    otherwise."""
    B, H, T, D = q_BHTD.shape
    G, S = k_BGSD.shape[1:3]
    q_BGND = (q_BHTD * (score_scale * D**-0.5)).reshape(B, G, H // G * T, D)
    scores_BHTS = (q_BGND @ k_BGSD.mT).view(B, H, T, S).float()
    if logit_softcap:
        scores_BHTS = logit_softcap * torch.tanh(scores_BHTS / logit_softcap)
    if bias_HTS is not None:
        scores_BHTS = scores_BHTS + bias_HTS
    return F.dropout(_hidden(scores_BHTS, mask_BTS).softmax(-1), dropout)


def _explicit_is_faster(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor) -> bool:
    if q_BHTD.device.type != "cpu":
        return False
    if k_BGSD.shape[3] != v_BGSD.shape[3]:  # the kernel wants one width, and what stands in for it copies shared keys to each head
        return True
    return q_BHTD.dtype == torch.bfloat16 and k_BGSD.shape[2] <= LONGEST_EXPLICIT and torch.compiler.is_compiling()


def _by_blocks(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, block_mask: Any, logit_softcap: float, bias_HTS: Tensor | None, score_scale: float, bias_of: BiasOf | None
) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def changed(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        score = logit_softcap * torch.tanh(score / logit_softcap) if logit_softcap else score
        if bias_of is not None:
            by_distance = bias_of(h, t - s)
            assert by_distance is not None
            return score + by_distance
        return score if bias_HTS is None else score + bias_HTS[h, t, s]

    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    score_mod = changed if logit_softcap or bias_HTS is not None or bias_of is not None else None
    scale = score_scale * q_BHTD.shape[3] ** -0.5
    flex: Any = flex_attention if torch.compiler.is_compiling() or q_BHTD.device.type == "cpu" else _compiled_flex()
    return flex(q_BHTD, k_BGSD, v_BGSD, score_mod=score_mod, block_mask=block_mask, scale=scale, enable_gqa=grouped)


@functools.cache
def _compiled_flex() -> Callable[..., Tensor]:
    """FlexAttention's kernel for a model that is not compiled itself; uncompiled it would write all scores."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


@constant_result
def has_flex_kernel(kind: str) -> bool:
    """Whether FlexAttention is a kernel on this kind of device: on CUDA with Triton."""
    return kind == "cuda" and importlib.util.find_spec("triton") is not None


def flex_takes(q_BHTD: Tensor, v_BGSD: Tensor) -> bool:
    """The kernel's heads are at least 16 wide."""
    return min(q_BHTD.shape[-1], v_BGSD.shape[-1]) >= 16


def _explicit(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, *options: Any) -> Tensor:
    """options: as of `attention_weights`."""
    B, H, T, _ = q_BHTD.shape
    G, S, D = v_BGSD.shape[1:]
    weights_BHTS = attention_weights(q_BHTD, k_BGSD, *options)
    return (weights_BHTS.to(v_BGSD.dtype).view(B, G, H // G * T, S) @ v_BGSD).view(B, H, T, D)


def _hidden(scores_BHTS: Tensor, mask_BTS: Tensor | None) -> Tensor:
    """Scores with -inf where the mask, or for more than one query causality, forbids to look."""
    if mask_BTS is not None:
        return scores_BHTS.masked_fill(~mask_BTS[:, None], float("-inf"))
    if (T := scores_BHTS.shape[2]) > 1:
        t = torch.arange(T, device=scores_BHTS.device)
        return scores_BHTS.masked_fill(t > t[:, None], float("-inf"))
    return scores_BHTS
