"""Cross-entropy of a linear map whose gradients are made in the forward pass, chunk by chunk of tokens.

The gradient of a sum of losses is known, up to the factor that arrives in the backward pass, as soon as a chunk's logits
are there:

    p = softmax(h W^T);  nats = -log p[target];  g = p - onehot(target);  dh = g W;  dW += g^T h

So no logits live longer than their chunk, which on a CPU stays in the processor's cache, and nothing is computed twice
(the idea is that of Liger kernel, arXiv:2410.10989). Opaque operations to torch.compile and to autograd; no second
derivative: asking for one is an error. Measured on one core (4,096 tokens, fp32): 128 x 2,048 in 103 ms instead of 144 for
the compiled cross-entropy, 256 x 4,096 in 340 instead of 418, 384 x 4,096 in 500 instead of 566.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

ALIGNMENT = {"cuda": 64}
"""Rows of the weight, by device, are filled up with zeros to a multiple of this: a GPU multiplies 50,257 columns several times slower than
50,304. The vocabulary itself stays as it is."""
CHUNK_BYTES = 1 << 23
"""Logits of a chunk on a CPU, fp32: of 256 KB to 64 MB, sizes from 2 MB on were equally fast."""


def fused_cross_entropy(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, scale_N: Tensor | None, rows: int) -> Tensor:
    """Sum over n of scale_n * -log softmax(W h_n)[target_n], a scalar in fp32; scale None: 1.

    The products are in autocast's dtype where it is on, else in hidden's; the rest in fp32. rows: most tokens a chunk.
    """
    kind = hidden_NC.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_NC.dtype
    if hidden_NC.device.type == "cpu":
        rows = min(rows, max(64, CHUNK_BYTES // (4 * weight_VC.shape[0])))
    wanted = torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad)
    return _sum_and_gradients(hidden_NC.to(dtype), weight_VC.to(dtype), targets_N, scale_N, rows, wanted)[0]


@torch.library.custom_op("feeb::linear_cross_entropy", mutates_args=())
def _sum_and_gradients(
    hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, scale_N: Tensor | None, rows: int, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The sum, and, when wanted, its gradients by hidden [N,C] and weight [V,C] (else empty), in their dtypes."""
    N, V, dtype = len(hidden_NC), len(weight_VC), hidden_NC.dtype
    padding = -V % ALIGNMENT.get(hidden_NC.device.type, 1)
    weight_PC = F.pad(weight_VC, (0, 0, 0, padding)) if padding else weight_VC
    nll_N = torch.empty(N, device=hidden_NC.device)
    by_hidden_NC = torch.empty_like(hidden_NC) if wanted else hidden_NC.new_empty(0)
    by_weight_PC = torch.zeros_like(weight_PC, dtype=torch.float32) if wanted else hidden_NC.new_empty(0)
    for start in range(0, N, rows):
        part = slice(start, start + rows)
        hidden_nC, target_n1 = hidden_NC[part], targets_N[part, None]
        logits_nV = (hidden_nC @ weight_PC.t())[:, :V].float()
        if not wanted:
            nll_N[part] = F.cross_entropy(logits_nV, targets_N[part], reduction="none")
            continue
        p_nV = torch.softmax(logits_nV, 1)
        # log-sum-exp by way of the largest probability, which is never tiny, so that there is one pass of exponentials
        nll_N[part] = (logits_nV.amax(1, keepdim=True) - p_nV.amax(1, keepdim=True).log() - logits_nV.gather(1, target_n1))[:, 0]
        p_nV.scatter_(1, target_n1, p_nV.gather(1, target_n1) - 1)
        if scale_N is not None:
            p_nV *= scale_N[part, None]
        g_nP = F.pad(p_nV.to(dtype), (0, padding)) if padding else p_nV.to(dtype)
        torch.mm(g_nP, weight_PC, out=by_hidden_NC[part])
        if dtype == torch.float32:
            by_weight_PC.addmm_(g_nP.t(), hidden_nC)
        else:
            by_weight_PC += g_nP.t() @ hidden_nC
    total = nll_N.sum() if scale_N is None else torch.dot(nll_N, scale_N.float())
    return total, by_hidden_NC, by_weight_PC[:V].to(dtype)


@_sum_and_gradients.register_fake
def _(hidden_NC: Tensor, weight_VC: Tensor, targets_N: Tensor, scale_N: Tensor | None, rows: int, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    total = hidden_NC.new_empty((), dtype=torch.float32)
    if not wanted:
        return total, hidden_NC.new_empty(0), hidden_NC.new_empty(0)
    return total, torch.empty_like(hidden_NC), torch.empty_like(weight_VC)


@torch.library.custom_op("feeb::times_scalar", mutates_args=())
def _times(gradient: Tensor, factor: Tensor) -> Tensor:
    """An operation of its own, so that a second derivative, which would be wrong, is an error."""
    return (gradient.to(torch.promote_types(gradient.dtype, factor.dtype)) * factor).to(gradient.dtype)  # a factor in bf16 is off by up to 0.4 %


@_times.register_fake
def _(gradient: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.wanted = inputs[5]
    ctx.save_for_backward(*output[1:])


def _backward(ctx, by_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[no-untyped-def]
    if not ctx.wanted:
        raise RuntimeError("feeb::linear_cross_entropy was called without gradients; a backward pass through it needs wanted=True")
    by_hidden_NC, by_weight_VC = ctx.saved_tensors
    return _times(by_hidden_NC, by_total), _times(by_weight_VC, by_total), None, None, None, None


_sum_and_gradients.register_autograd(_backward, setup_context=_keep)
