"""What the parts named ngpt share: vectors and matrices of unit norm (arXiv:2410.01131). Norms are taken in fp32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feebcore.model.parts import ResidualLinear

SMALLEST = 1e-12  # of a squared norm


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x| along `dim`, in x's dtype."""
    y = x.float()
    return (y * torch.rsqrt(y.square().sum(dim, keepdim=True) + SMALLEST)).to(x.dtype)


class UnitRows(nn.Linear):
    """W x, each row of W divided by its norm: what comes out are |x| cosines.

    The paper divides the stored weights after every optimizer step; here it is done in every forward pass, which is the same
    function and needs no hook in the training loop. The gradient is then orthogonal to a row, so stored rows grow, and the
    same rate turns them by less and less, unless weight decay holds them: the paper has none, a recipe may.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, unit(self.weight))


class UnitColumns(ResidualLinear):
    """W x for what is added to the stream: each column of W, which is a vector of the stream, is divided by its norm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, unit(self.weight, 0))


class LearnedScale(nn.Module):
    """`initial` at first, one number a channel. Stored as `stored`, so that Adam, whose steps are of one size, moves it by
    initial / stored times the rate (arXiv:2410.01131, section 2.5)."""

    def __init__(self, size: int, initial: float, stored: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.full((size,), stored)), initial / stored

    def forward(self) -> Tensor:
        return self.weight * self.factor
