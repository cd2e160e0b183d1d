"""What the parts named ngpt share: vectors and matrices of unit L2 norm (arXiv:2410.01131). Norms are taken in fp32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from feebcore.model.parts import ResidualLinear

SMALLEST = 1e-12  # of a squared norm


def l2_normalize(x: Tensor, dim: int = -1) -> Tensor:
    """x / |x| along `dim`, in x's dtype."""
    y = x.float()
    return (y * torch.rsqrt(y.square().sum(dim, keepdim=True) + SMALLEST)).to(x.dtype)


class NormalizedLinear(nn.Linear):
    """W x, each row of W divided by its norm: the result is |x| times cosines.

    The paper divides the stored weights after every optimizer step; here it is done in every forward pass, which is the same
    function and needs no hook in the training loop. The gradient is then orthogonal to a row, so stored rows grow, and the
    same rate turns them by less and less, unless weight decay holds them: the paper has none, a recipe may.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, l2_normalize(self.weight))


class NormalizedResidualLinear(ResidualLinear):
    """W x for what is added to the stream: each column of W, which is a vector of the stream, is divided by its norm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, l2_normalize(self.weight, 0))


class LearnedScale(nn.Module):
    """One learned number per channel, initially `init_value`. Stored as `stored`, so that Adam, whose steps are of one size, moves it
    by init_value / stored times the learning rate (arXiv:2410.01131, section 2.5)."""

    def __init__(self, size: int, init_value: float, stored: float) -> None:
        super().__init__()
        self.weight, self.factor = nn.Parameter(torch.full((size,), stored)), init_value / stored

    def forward(self) -> Tensor:
        return self.weight * self.factor
