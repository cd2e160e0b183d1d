"""W2 gelu(W1 x) with structured matrices: products of block-diagonal ones with shuffles in between.

Monarch     (arXiv:2204.00595)  two factors of b blocks each: about (1 + C / F) / b of a dense matrix's weights
butterfly   (arXiv:1903.05895)  log_r C factors of C / r blocks of r x r: r C log_r C weights; fixed by C
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from feeb_models.feedforwards.dense.dense import gelu
from feeb_models.feedforwards.structured_matrices import ButterflyConfig, MonarchConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import FeedforwardPart, ModelPart
from feebcore.protocols import BuildContext


class Monarch(ModelPart):
    """y = P L P R x. R, L block-diagonal with b blocks, P: write as a table of b rows, read by columns.

    residual: what it returns is added to the stream.
    """

    def __init__(self, d_in: int, d_out: int, blocks: int, residual: bool) -> None:
        super().__init__()
        middle = min(d_in, d_out) // blocks
        self.d_in, self.residual = d_in, residual
        self.right = nn.Parameter(torch.empty(blocks, middle, d_in // blocks))
        self.left = nn.Parameter(torch.empty(blocks, d_out // blocks, middle))

    def init_weights(self, std: float, residual_std: float) -> None:
        """The variance of y is that of a dense matrix of this std."""
        nn.init.normal_(self.right, std=self.right.shape[-1] ** -0.5)
        nn.init.normal_(self.left, std=(residual_std if self.residual else std) * math.sqrt(self.d_in / self.left.shape[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self._factor(self._factor(x, self.right), self.left)

    def _factor(self, x: Tensor, weight_KQP: Tensor) -> Tensor:
        blocks_KNP = x.reshape(-1, weight_KQP.shape[0], weight_KQP.shape[2]).transpose(0, 1)
        y_KNQ = blocks_KNP @ weight_KQP.mT
        return y_KNQ.permute(1, 2, 0).reshape(*x.shape[:-1], -1)

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * (self.right.numel() + self.left.numel()),) * 2


class Butterfly(ModelPart):
    """[..., copies, C] -> the same shape: each copy times L = log_r C factors of its own. Factor l mixes the r channels whose
    numbers differ in digit l (base r), so after all of them every output depends on every input."""

    def __init__(self, d_model: int, radix: int, copies: int, residual: bool) -> None:
        super().__init__()
        self.d_model, self.radix, self.residual = d_model, radix, residual
        self.levels = 0
        while radix**self.levels < d_model:
            self.levels += 1
        self.factors = nn.Parameter(torch.empty(self.levels, copies, d_model // radix, radix, radix))

    def init_weights(self, std: float, residual_std: float) -> None:
        """Factors keep the variance; the last one brings it to that of a dense matrix of this std."""
        nn.init.normal_(self.factors, std=self.radix**-0.5)
        with torch.no_grad():
            self.factors[-1].mul_((residual_std if self.residual else std) * math.sqrt(self.d_model))

    def forward(self, x: Tensor) -> Tensor:
        shape, copies, r = x.shape, x.shape[-2], self.radix
        y_NKC = x.reshape(-1, copies, self.d_model)
        for level, weight_KGRR in enumerate(self.factors.unbind()):
            stride = r**level
            groups_NKGRS = y_NKC.reshape(-1, copies, self.d_model // (r * stride), r, stride)
            blocks_KGNR = groups_NKGRS.permute(1, 2, 4, 0, 3).reshape(copies * self.d_model // r, -1, r)
            mixed_KGNR = blocks_KGNR @ weight_KGRR.reshape(-1, r, r).mT
            y_NKC = mixed_KGNR.view(copies, -1, stride, len(y_NKC), r).permute(3, 0, 1, 4, 2).reshape(len(y_NKC), copies, self.d_model)
        return y_NKC.view(shape)

    def extra_flops(self, length: int) -> tuple[float, float]:
        return (2.0 * length * self.factors.numel(),) * 2


class MonarchFeedforward(FeedforwardPart):
    """W2 gelu(W1 x), both Monarch."""

    def __init__(self, config: MonarchConfig, context: BuildContext) -> None:
        super().__init__()
        hidden = config.width(context.d_model)
        self.hidden = Monarch(context.d_model, hidden, config.blocks, residual=False)
        self.out = Monarch(hidden, context.d_model, config.blocks, residual=True)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return self.out(gelu(self.hidden(x_BTC)))


class ButterflyFeedforward(FeedforwardPart):
    """sum_k W2_k gelu(W1_k x), W1_k and W2_k butterflies: a hidden width of `copies` times d_model."""

    def __init__(self, config: ButterflyConfig, context: BuildContext) -> None:
        super().__init__()
        self.copies = config.copies
        self.hidden = Butterfly(context.d_model, config.radix, config.copies, residual=False)
        self.out = Butterfly(context.d_model, config.radix, config.copies, residual=True)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        x_BTKC = x_BTC[..., None, :].expand(*x_BTC.shape[:-1], self.copies, -1)
        return self.out(gelu(self.hidden(x_BTKC))).sum(-2)
