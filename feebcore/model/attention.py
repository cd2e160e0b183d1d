"""softmax(q k^T / sqrt(D)) v for grouped heads, in the form that is fastest where it runs.

In bf16 on a CPU, compiled and up to 512 keys, the products are written out: torch.compile fuses mask, softmax and casts
into one pass, and forward plus backward is then 2-4 times faster than the CPU's flash kernel (with AMX). In fp32 that
kernel skips what is masked and wins: with AVX2, compiled, 24 ms instead of 31 at T 128, 72 instead of 85 at 256, 135
instead of 146 at 512; uncompiled it needs a half, and a third without gradients. Elsewhere it is the fastest anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

LONGEST_EXPLICIT = 512


def attend(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask_BTS: Tensor | None = None, softcap: float = 0.0, block_mask: Any = None) -> Tensor:
    """[B,H,T,D]. Query head h reads key head h // (H / G). mask_BTS: True = may see; None = causal (T = S), or
    everything (T = 1). softcap: scores become softcap * tanh(scores / softcap); 0 leaves them. block_mask: what mask_BTS
    says as `document_block_mask` does; wins over it."""
    if block_mask is not None:
        return _by_blocks(q_BHTD, k_BGSD, v_BGSD, block_mask, softcap)
    assert mask_BTS is not None or q_BHTD.shape[2] in (1, k_BGSD.shape[2])
    if softcap or _explicit_is_faster(q_BHTD, k_BGSD):
        return _explicit(q_BHTD, k_BGSD, v_BGSD, mask_BTS, softcap)
    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    if grouped and q_BHTD.device.type == "cpu":  # its flash kernel knows no groups
        k_BGSD, v_BGSD = (x.repeat_interleave(q_BHTD.shape[1] // x.shape[1], dim=1) for x in (k_BGSD, v_BGSD))
        grouped = False
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    causal = mask_BTS is None and q_BHTD.shape[2] > 1
    return F.scaled_dot_product_attention(q_BHTD, k_BGSD, v_BGSD, mask_B1TS, is_causal=causal, enable_gqa=grouped)


def _explicit_is_faster(q_BHTD: Tensor, k_BGSD: Tensor) -> bool:
    on_cpu = q_BHTD.device.type == "cpu"
    return on_cpu and q_BHTD.dtype == torch.bfloat16 and k_BGSD.shape[2] <= LONGEST_EXPLICIT and torch.compiler.is_compiling()


def document_block_mask(doc_ids_BT: Tensor) -> BlockMask:
    """Causal within equal document ids, as FlexAttention's mask (arXiv:2412.05496): blocks of 128 x 128 that are seen
    whole, in part or not at all, so no [B,T,T] is held and blocks between documents cost nothing."""
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return (t >= s) & (doc_ids_BT[b, t] == doc_ids_BT[b, s])

    B, T = doc_ids_BT.shape
    return create_block_mask(sees, B, None, T, T, device=doc_ids_BT.device)


def _by_blocks(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, block_mask: Any, softcap: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    def capped(score: Tensor, b: Tensor, h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    grouped = q_BHTD.shape[1] != k_BGSD.shape[1]
    return flex_attention(q_BHTD, k_BGSD, v_BGSD, score_mod=capped if softcap else None, block_mask=block_mask, enable_gqa=grouped)


def _explicit(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, mask_BTS: Tensor | None, softcap: float) -> Tensor:
    B, H, T, D = q_BHTD.shape
    G, S = k_BGSD.shape[1:3]
    q_BGND = (q_BHTD * D**-0.5).reshape(B, G, H // G * T, D)
    scores_BGRTS = (q_BGND @ k_BGSD.mT).view(B, G, H // G, T, S).float()
    if softcap:
        scores_BGRTS = softcap * torch.tanh(scores_BGRTS / softcap)
    if mask_BTS is not None:
        scores_BGRTS = scores_BGRTS.masked_fill(~mask_BTS[:, None, None], float("-inf"))
    elif T > 1:
        t = torch.arange(T, device=q_BHTD.device)
        scores_BGRTS = scores_BGRTS.masked_fill(t > t[:, None], float("-inf"))
    weights_BGNS = scores_BGRTS.softmax(-1).to(v_BGSD.dtype).view(B, G, H // G * T, S)
    return (weights_BGNS @ v_BGSD).view(B, H, T, D)
