"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    c_q = norm(W_dq x);  q_h = [W_uq c_q, rotate(W_qr c_q)]           content and rotated dimensions of each head
    c = norm(W_dkv x);   k_h = [W_uk c, rotate(W_kr x)];  v_h = W_uv c     one rotated key for all heads
    y = W_out softmax(q k^T / sqrt(content + rope)) v

Only c and the rotated key are cached. With a past in the cache the heads' keys and values are never made: as
(W_uq c_q)^T W_uk c = (W_uk^T W_uq c_q)^T c, the query moves into the latent's space, all heads attend to the cached latent
as one key and value, and W_uv is applied to the result. Both forms are the same function; without a past the first
costs less, as its heads are narrower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from feeb_models.attentions.mla import LatentConfig
from feebcore.model.context import ForwardContext
from feebcore.model.parts import AttentionPart, ResidualLinear
from feebcore.protocols import BuildContext


class LatentAttention(AttentionPart):
    def __init__(self, config: LatentConfig, context: BuildContext) -> None:
        super().__init__()
        H, self.logit_softcap = context.num_heads, config.logit_softcap
        self.num_heads, self.latent = H, config.kv_lora_rank or 4 * context.head_dim
        self.content = config.qk_nope_head_dim or context.head_dim
        self.rope = config.qk_rope_head_dim or max(2, context.head_dim // 4 * 2)
        self.value = config.v_head_dim or self.content
        make_norm = context.make_norm if config.latent_norm else lambda dim: nn.Identity()
        self.query_down = nn.Linear(context.d_model, config.q_lora_rank, bias=False) if config.q_lora_rank else nn.Identity()
        self.query_norm = make_norm(config.q_lora_rank) if config.q_lora_rank else nn.Identity()
        self.query_up = nn.Linear(config.q_lora_rank or context.d_model, H * (self.content + self.rope), bias=False)
        self.down = nn.Linear(context.d_model, self.latent + self.rope, bias=False)
        self.row_blocks = {"down.weight": (self.latent, self.rope)}
        self.latent_norm = make_norm(self.latent)
        self.up = nn.Linear(self.latent, H * (self.content + self.value), bias=False)
        self.out = ResidualLinear(H * self.value, context.d_model, bias=False)
        context.position.also_rotate(self.rope)

    def forward(self, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        B, T, _ = x_BTC.shape
        q_BTHD = self.query_up(self.query_norm(self.query_down(x_BTC))).view(B, T, self.num_heads, -1)
        content_BTHD, rotated_BTHR = q_BTHD.split([self.content, self.rope], dim=-1)
        latent_BTL, key_BTR = self.down(x_BTC).split([self.latent, self.rope], dim=-1)
        latent_BTL = self.latent_norm(latent_BTL).to(key_BTR.dtype)
        content_BHTD, rotated_BHTR = content_BTHD.transpose(1, 2), context.rotate(rotated_BTHR).transpose(1, 2)
        cached_BTE = torch.cat([latent_BTL, context.rotate(key_BTR.unsqueeze(2)).squeeze(2)], dim=-1)
        (cached_B1SE,) = context.update(cached_BTE.unsqueeze(1))
        has_past = context.cache is not None and cached_B1SE.shape[2] > T
        form = self.absorbed if has_past else self.naive
        y_BHTD = form(content_BHTD, rotated_BHTR, cached_B1SE, context)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, self.num_heads * self.value))

    def naive(self, content_BHTD: Tensor, rotated_BHTR: Tensor, cached_B1SE: Tensor, context: ForwardContext) -> Tensor:
        """[B,H,T,value]: each head's keys and values made from the latent. cached_B1SE: latents and, behind them, rotated keys."""
        B, _, S, _ = cached_B1SE.shape
        latent_BSL, key_B1SR = cached_B1SE[:, 0, :, : self.latent], cached_B1SE[..., self.latent :]
        made_BHSE = self.up(latent_BSL).view(B, S, self.num_heads, -1).transpose(1, 2)
        k_BHSD, v_BHSD = made_BHSE.split([self.content, self.value], dim=-1)
        k_BHSD = torch.cat([k_BHSD, key_B1SR.expand(-1, self.num_heads, -1, -1)], dim=-1)
        return context.attend(torch.cat([content_BHTD, rotated_BHTR], dim=-1), k_BHSD, v_BHSD, self.logit_softcap)

    def absorbed(self, content_BHTD: Tensor, rotated_BHTR: Tensor, cached_B1SE: Tensor, context: ForwardContext) -> Tensor:
        """[B,H,T,value]: the heads' queries against the latent itself; nothing that is as long as the past is made or copied."""
        up_key_HDL, up_value_HDL = self.up.weight.view(self.num_heads, -1, self.latent).split([self.content, self.value], dim=1)
        q_BHTE = torch.cat([content_BHTD @ up_key_HDL, rotated_BHTR], dim=-1)
        q_BHTE = q_BHTE * ((self.latent + self.rope) / (self.content + self.rope)) ** 0.5  # attend divides by the root of its own width
        y_BHTL = context.attend(q_BHTE, cached_B1SE, cached_B1SE[..., : self.latent], self.logit_softcap)
        return y_BHTL @ up_value_HDL.mT

    def extra_flops(self, length: int) -> tuple[float, float]:
        full = 2.0 * length**2 * self.num_heads * (self.content + self.rope + self.value)  # q k^T and weights v
        return full, full / 2

    @property
    def cache_bytes_per_token(self) -> int:
        return (self.latent + self.rope) * 4
