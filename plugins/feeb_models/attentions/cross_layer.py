"""Cross-layer attention (arXiv:2405.12981): of every `share` neighboring layers the first makes keys and values, and the
others have queries alone. The cache is 1 / share of that of the same heads, and k and v cost as much less.

Groups of layers that a depth runs more than once do not go with activation_checkpointing: computed again in the backward
pass, a layer would find the keys of the last round.
"""

from __future__ import annotations

from torch import Tensor, nn

from feeb_models.attentions import CrossLayerConfig
from feebcore.errors import FeebError
from feebcore.model.context import ForwardContext
from feebcore.model.parts import ResidualLinear
from feebcore.protocols import BlockShape


class CrossLayerAttention(nn.Module):
    def __init__(self, config: CrossLayerConfig, block: BlockShape) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.logit_softcap = block.num_heads, block.head_dim, config.logit_softcap
        self.num_kv_heads = config.num_kv_heads or block.num_heads
        self.makes_keys, self.layer = block.layer % config.share == 0, block.layer
        self.key = f"attention.cross_layer.{block.layer // config.share}"  # a name a group: blocks may be computed again, in any order
        self.q = nn.Linear(block.d_model, self.num_heads * self.head_dim, bias=config.bias)
        self.kv = nn.Linear(block.d_model, 2 * self.num_kv_heads * self.head_dim, bias=config.bias) if self.makes_keys else None
        self.out = ResidualLinear(self.num_heads * self.head_dim, block.d_model, bias=config.bias)
        normed = config.qk_norm and block.make_norm
        self.q_norm = block.make_norm(self.head_dim) if normed else nn.Identity()  # type: ignore[misc]
        self.k_norm = block.make_norm(self.head_dim) if normed and self.makes_keys else nn.Identity()  # type: ignore[misc]

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
                f"attention cross_layer: layer {self.layer} has no keys of its own, and the layer that makes them did not run before it; set share: 1, or let no group begin before, and end after, the patches of depth patches"
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


def build_cross_layer(config: CrossLayerConfig, block: BlockShape) -> nn.Module:
    return CrossLayerAttention(config, block)
