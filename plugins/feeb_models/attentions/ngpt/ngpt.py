"""Attention of nGPT (arXiv:2410.01131, section 2.3): scores are cosines.

    q = s u(rotate(W_q x));  k = s u(rotate(W_k x));  y = W_out softmax(sqrt(D) q k^T) W_v x,     u(x) = x / |x|

Rows of W_q, W_k, W_v and columns of W_out have unit norm; s is learned, one gain per dimension of each head.
"""

from __future__ import annotations

from torch import Tensor

from feeb_models.attentions.ngpt import NgptConfig
from feeb_models.normalized_linear import LearnedScale, NormalizedLinear, NormalizedResidualLinear, l2_normalize
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart
from feebcore.protocols import BuildContext


class NgptAttention(AttentionPart):
    def __init__(self, config: NgptConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_heads, self.head_dim = context.num_heads, context.head_dim
        width = self.num_heads * self.head_dim
        self.qkv = NormalizedLinear(context.d_model, 3 * width, bias=False)
        self.row_blocks = {"qkv.weight": (width, width, width)}
        self.out = NormalizedResidualLinear(width, context.d_model, bias=False)
        self.gain = LearnedScale(width, config.init_value, context.d_model**-0.5)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        H, D = self.num_heads, self.head_dim
        q_BTHD, k_BTHD, v_BTHD = self.qkv(x_BTC).view(B, T, 3, H, D).unbind(2)
        gain_HD = self.gain().view(H, D)
        k_BTHD = (gain_HD * l2_normalize(context.rotate(k_BTHD))).to(v_BTHD.dtype)
        q_BTHD = (D * gain_HD * l2_normalize(context.rotate(q_BTHD))).to(v_BTHD.dtype)  # attend divides by sqrt(D)
        k_BHSD, v_BHSD = context.update(k_BTHD.transpose(1, 2), v_BTHD.transpose(1, 2))
        y_BHTD = context.attend(q_BTHD.transpose(1, 2), k_BHSD, v_BHSD)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, H * D))

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 4.0 * length**2 * self.num_heads * self.head_dim  # q k^T and weights v
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.num_heads * self.head_dim * 4
