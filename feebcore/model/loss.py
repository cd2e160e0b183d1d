"""Linear map and cross-entropy together: logits exist for a chunk of tokens at a time, in the compute dtype.

Reductions are in fp32. A head that is a plain matrix (`plain_weight` of LMHeadPart) goes through feebcore/model/fused_loss.py
where that is faster: on a CPU, and wherever there are more logits than may exist at once. Other heads: up to that number the tokens are
one chunk (under torch.compile the fp32 copy is then never written to memory); beyond, each chunk's logits are made again in
the backward pass instead of kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from feebcore.model.constant_result import constant_result
from feebcore.model.fused_loss import fused_cross_entropy
from feebcore.model.parts import LMHeadPart

MOST_LOGITS = 2**25
"""Logits that exist at once on a CPU: 64 MB in bf16."""
BYTES_PER_LOGIT = 256
"""Of a GPU's memory: 2^28 logits of 80 GB, so that chunks are few and their kernels large. A logit takes 12 bytes at most, in bf16 and fp32."""


@constant_result
def most_logits_on(kind: str, index: int | None) -> int:
    """Logits that exist at once on a device."""
    if kind != "cuda":
        return MOST_LOGITS
    return int(max(MOST_LOGITS, torch.cuda.get_device_properties(index).total_memory // BYTES_PER_LOGIT))


@dataclass
class CrossEntropy:
    """Sums over the targets that count, fp32 scalars in nats. nll: -log p alone; loss_sum: with smoothing and z-loss."""

    loss_sum: Tensor
    nll: Tensor
    count: Tensor


def linear_cross_entropy(
    head: nn.Module,
    hidden_BTC: Tensor,
    targets_BT: Tensor,
    mask_BT: Tensor | None = None,
    *,
    vocab_size: int,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    most_logits: int = 0,
) -> CrossEntropy:
    """Cross-entropy of softmax(head(hidden)) against targets, where mask is True; masked targets may hold anything.

    most_logits: that exist at once; 0: as suits the device. label_smoothing e: (1 - e) (-log p_target) + e mean_v(-log p_v). z_loss z: + z logsumexp^2 (arXiv:2204.02311).
    """
    hidden_NC, targets_N = hidden_BTC.flatten(0, -2), targets_BT.flatten()
    most_logits = most_logits or most_logits_on(hidden_NC.device.type, hidden_NC.device.index)
    if mask_BT is None:
        count = torch.full((), float(len(targets_N)), device=hidden_NC.device)
        weight_N = None
    else:
        weight_N = mask_BT.flatten().float()
        count = weight_N.sum()
        targets_N = targets_N.masked_fill(~mask_BT.flatten(), 0)

    weight_VC = head.plain_weight if isinstance(head, LMHeadPart) else None
    many = vocab_size * len(targets_N) > most_logits
    if weight_VC is not None and not (z_loss or label_smoothing) and (many or hidden_NC.device.type == "cpu") and _is_local(weight_VC):
        nll = fused_cross_entropy(hidden_NC, weight_VC, targets_N, weight_N, rows=max(1, most_logits // vocab_size))
        return CrossEntropy(nll, nll.detach(), count)

    def chunk_loss(hidden_NC: Tensor, targets_N: Tensor, weight_N: Tensor | None) -> tuple[Tensor, Tensor]:
        logits_NV = head(hidden_NC).float()
        nll_N = F.cross_entropy(logits_NV, targets_N, reduction="none")  # inductor makes its backward without a scatter
        loss_N = nll_N
        lse_N = logits_NV.logsumexp(-1) if label_smoothing or z_loss else nll_N
        if label_smoothing:
            loss_N = (1 - label_smoothing) * nll_N + label_smoothing * (lse_N - logits_NV.mean(-1))
        if z_loss:
            loss_N = loss_N + z_loss * lse_N.square()
        if weight_N is not None:
            loss_N, nll_N = loss_N * weight_N, nll_N * weight_N
        return loss_N.sum(), nll_N.detach().sum()

    rows = max(1, most_logits // vocab_size)
    if rows >= len(targets_N):
        loss, nll = chunk_loss(hidden_NC, targets_N, weight_N)
        return CrossEntropy(loss, nll, count)
    loss = nll = torch.zeros((), device=hidden_NC.device)
    for start in range(0, len(targets_N), rows):
        part = slice(start, start + rows)
        chunk = (hidden_NC[part], targets_N[part], None if weight_N is None else weight_N[part])
        more_loss, more_nll = checkpoint(chunk_loss, *chunk, use_reentrant=False)  # type: ignore[misc]
        loss, nll = loss + more_loss, nll + more_nll
    return CrossEntropy(loss, nll, count)


def _is_local(weight_VC: Tensor) -> bool:
    """No DTensor: a head that is sharded by itself is whole only inside its own forward."""
    return not hasattr(weight_VC, "placements")
