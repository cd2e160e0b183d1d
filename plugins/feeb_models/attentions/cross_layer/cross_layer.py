"""Cross-layer attention (arXiv:2405.12981): of every `kv_share_layers` neighboring layers the first makes keys and values, and the
others have queries alone. The cache is 1 / kv_share_layers of that of the same heads, and k and v cost as much less.
"""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions.cross_layer import CrossLayerConfig
from feebcore.errors import FeebError
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext


class CrossLayerAttention(AttentionPart):
    def __init__(self, config: CrossLayerConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.logit_softcap = context.num_heads, context.head_dim, config.logit_softcap
        self.num_kv_heads = config.num_kv_heads or context.num_heads
        self.makes_keys, self.layer = context.layer % config.kv_share_layers == 0, context.layer
        self.key = f"attention.cross_layer.{context.layer // config.kv_share_layers}"  # a name per group of layers
        self.q = nn.Linear(context.d_model, self.num_heads * self.head_dim, bias=config.bias)
        rows = self.num_kv_heads * self.head_dim
        self.kv = nn.Linear(context.d_model, 2 * rows, bias=config.bias) if self.makes_keys else None
        self.row_blocks = {"kv.weight": (rows, rows)}
        self.out = ResidualLinear(self.num_heads * self.head_dim, context.d_model, bias=config.bias)
        self.q_norm = context.make_norm(self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = context.make_norm(self.head_dim) if config.qk_norm and self.makes_keys else nn.Identity()

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BTHD = self.q(x_BTC).view(B, T, self.num_heads, self.head_dim)
        q_BTHD = context.rotate(self.q_norm(q_BTHD).to(q_BTHD.dtype))
        if self.kv is not None:
            k_BTGD, v_BTGD = self.kv(x_BTC).view(B, T, 2 * self.num_kv_heads, self.head_dim).chunk(2, dim=2)
            k_BTGD = context.rotate(self.k_norm(k_BTGD).to(v_BTGD.dtype))
            context.shared[self.key] = context.update(k_BTGD.transpose(1, 2), v_BTGD.transpose(1, 2))
        elif self.key not in context.shared:
            raise FeebError(
                f"attention cross_layer: layer {self.layer} has no keys of its own, and the layer that makes them did not run before it; "
                "set kv_share_layers: 1, or with stack patches let no group of layers begin before the patches and end after them"
            )
        k_BGSD, v_BGSD = context.shared[self.key]
        y_BHTD = context.attend(q_BTHD.transpose(1, 2), k_BGSD, v_BGSD, self.logit_softcap)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, self.num_heads * self.head_dim))

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 4.0 * length**2 * self.num_heads * self.head_dim  # q k^T and weights v
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return 2 * self.num_kv_heads * self.head_dim * 4 if self.makes_keys else 0
