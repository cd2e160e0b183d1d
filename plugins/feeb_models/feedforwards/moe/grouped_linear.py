"""Rows sorted by group, each group times a matrix of its own: what experts are made of.

    y[ends[g-1] : ends[g]] = x[ends[g-1] : ends[g]] @ weight[g]^T

Group sizes are data, shapes are not: an operator of its own keeps the split out of what torch.compile sees. In bf16 on CUDA
it is one kernel (torch's grouped_mm, which can neither be traced in fp32 nor be counted); in other formats there, blocks of rows that are
of one group each, so that nobody waits for the sizes; on a CPU one product a group.

Weights are cast to x's dtype inside the operator and again in its backward pass: what is kept in between is the parameter itself, not a
copy of all experts for each layer and pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

LEAST = 64
"""Rows of a block, where there are not many a group."""


@torch.library.custom_op("feeb::grouped_linear", mutates_args=())
def grouped_linear(x_NC: Tensor, weight_GFC: Tensor, ends_G: Tensor) -> Tensor:
    """[N,F] in x's dtype. ends_G: int64, where each group's rows end; the last is N."""
    weight_GFC = weight_GFC.to(x_NC.dtype)
    if _one_kernel(x_NC, weight_GFC):
        return F.grouped_mm(x_NC.contiguous(), weight_GFC.mT, offs=ends_G.int())
    if _by_blocks(x_NC):
        blocks = Blocks(ends_G, len(x_NC))
        y_PbF = x_NC[blocks.row_Pb] @ weight_GFC[blocks.group_P].mT
        return y_PbF.flatten(0, 1).index_select(0, blocks.place_N)
    y_NF = x_NC.new_empty(x_NC.shape[0], weight_GFC.shape[1])
    for group, (start, end) in enumerate(_bounds(ends_G)):
        torch.mm(x_NC[start:end], weight_GFC[group].T, out=y_NF[start:end])
    return y_NF


@torch.library.custom_op("feeb::grouped_outer", mutates_args=())
def grouped_outer(y_NF: Tensor, x_NC: Tensor, ends_G: Tensor) -> Tensor:
    """y^T x of each group's rows, [G,F,C]: the gradient of `weight_GFC` above."""
    if _one_kernel(y_NF, x_NC):
        return F.grouped_mm(y_NF.contiguous().mT, x_NC.contiguous(), offs=ends_G.int())
    if _by_blocks(x_NC):
        blocks = Blocks(ends_G, len(x_NC))
        y_PFb = (y_NF[blocks.row_Pb] * blocks.real_Pb[..., None]).mT
        return x_NC.new_zeros(len(ends_G), y_NF.shape[1], x_NC.shape[1]).index_add_(0, blocks.group_P, y_PFb @ x_NC[blocks.row_Pb])
    result_GFC = x_NC.new_empty(len(ends_G), y_NF.shape[1], x_NC.shape[1])
    for group, (start, end) in enumerate(_bounds(ends_G)):
        torch.mm(y_NF[start:end].T, x_NC[start:end], out=result_GFC[group])
    return result_GFC


def _by_blocks(x: Tensor) -> bool:
    return x.device.type != "cpu"


class Blocks:
    """N rows sorted by group as P blocks of b = max(LEAST, N / G) rows, none with rows of two groups. P is the most that there can be, so
    that shapes do not depend on the sizes of groups: at most b - 1 places of each group stay empty, and weights are copied to at most 2 G blocks.

    row_Pb: the row at each place; real_Pb: whether there is one; group_P: each block's group; place_N: where each row stands in P b.
    """

    def __init__(self, ends_G: Tensor, number: int) -> None:
        device, last, size = ends_G.device, len(ends_G) - 1, max(LEAST, -(-number // len(ends_G)))
        starts_G = F.pad(ends_G[:-1], (1, 0))
        block_ends_G = ((ends_G - starts_G + size - 1) // size).cumsum(0)
        block_starts_G = F.pad(block_ends_G[:-1], (1, 0))
        p = torch.arange(number // size + len(ends_G), device=device)
        self.group_P = torch.searchsorted(block_ends_G, p, right=True).clamp(max=last)
        row_Pb = (starts_G[self.group_P] + (p - block_starts_G[self.group_P]) * size)[:, None] + torch.arange(size, device=device)
        self.real_Pb = row_Pb < ends_G[self.group_P][:, None]
        self.row_Pb = row_Pb.clamp(max=number - 1)
        n = torch.arange(number, device=device)
        group_N = torch.searchsorted(ends_G, n, right=True)
        self.place_N = block_starts_G[group_N] * size + n - starts_G[group_N]


def _bounds(ends_G: Tensor) -> list[tuple[int, int]]:
    ends = ends_G.tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _one_kernel(a: Tensor, b: Tensor) -> bool:
    """The kernel wants rows of whole 16 bytes."""
    return a.is_cuda and a.dtype == torch.bfloat16 and a.shape[-1] % 8 == 0 and b.shape[-1] % 8 == 0 and b.shape[-2] % 8 == 0


@grouped_linear.register_fake
def _(x_NC: Tensor, weight_GFC: Tensor, ends_G: Tensor) -> Tensor:
    return x_NC.new_empty(x_NC.shape[0], weight_GFC.shape[1])


@grouped_outer.register_fake
def _(y_NF: Tensor, x_NC: Tensor, ends_G: Tensor) -> Tensor:
    return x_NC.new_empty(ends_G.shape[0], y_NF.shape[1], x_NC.shape[1])


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad_NF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_NC, weight_GFC, ends_G = ctx.saved_tensors
    grad_x = grouped_linear(grad_NF, weight_GFC.mT, ends_G) if ctx.needs_input_grad[0] else None
    grad_weight = grouped_outer(grad_NF, x_NC, ends_G).to(weight_GFC.dtype) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, None


grouped_linear.register_autograd(_gradients, setup_context=_save)


class BatchedLinear(torch.autograd.Function):
    """x [G,N,C] and weight [G,F,C] to [G,N,F]: as many rows for each group. Here too the weight is cast again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_GNC: Tensor, weight_GFC: Tensor) -> Tensor:
        ctx.save_for_backward(x_GNC, weight_GFC)
        return x_GNC @ weight_GFC.to(x_GNC.dtype).mT

    @staticmethod
    def backward(ctx: Any, grad_GNF: Tensor) -> tuple[Tensor | None, Tensor | None]:  # type: ignore[override]
        x_GNC, weight_GFC = ctx.saved_tensors
        grad_x = grad_GNF @ weight_GFC.to(grad_GNF.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = (x_GNC.mT @ grad_GNF).mT.to(weight_GFC.dtype) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight


@register_flop_formula(torch.ops.feeb.grouped_linear)
def _linear_flops(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * x_shape[0] * weight_shape[1] * weight_shape[2]


@register_flop_formula(torch.ops.feeb.grouped_outer)
def _outer_flops(y_shape: Any, x_shape: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * y_shape[0] * y_shape[1] * x_shape[1]
