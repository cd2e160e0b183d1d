"""Multi-head latent attention."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore.model.config import ModelPartConfig


class LatentConfig(ModelPartConfig):
    q_lora_rank: int = Field(0, ge=0, description="width of the latent from which queries are made; 0: the stream itself")
    kv_lora_rank: int | None = Field(None, ge=1, description="width of the latent from which keys and values are made, which is cached; default 4 head_dim")
    qk_nope_head_dim: int | None = Field(None, ge=1, description="dimensions of a head's query and key without rotation; default head_dim")
    qk_rope_head_dim: int | None = Field(None, ge=2, description="rotated dimensions of a head's query, and of the one key for them; default head_dim / 2")
    v_head_dim: int | None = Field(None, ge=1, description="dimensions of a head's value; default qk_nope_head_dim")
    latent_norm: bool = Field(True, description="normalize both latents with the model's norm")
    logit_softcap: float = Field(
        0.0, ge=0.0, description="attention scores become logit_softcap * tanh(scores / logit_softcap) (attn_logit_softcapping); 0: off"
    )

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if self.qk_rope_head_dim and self.qk_rope_head_dim % 2:
            raise ValueError(f"attention.qk_rope_head_dim {self.qk_rope_head_dim} is odd, but positions rotate pairs; set it to {self.qk_rope_head_dim + 1}")


PART = feeb.AttentionSpec(
    "mla",
    LatentConfig,
    build=f"{__name__}.latent:LatentAttention",
    summary="Multi-head latent attention (MLA): keys and values are projected from a low-rank latent, and only the latent is cached.",
    reference="arXiv:2405.04434",
    since="1.1",
    equation="c = norm(W_dkv x);   q_h = [W_uq,h x; rot(W_qr,h x)],   k_h = [W_uk,h c; rot(W_kr x)],   v_h = W_uv,h c\n"
    "y = W_o [att(q_h, k_h, v_h)]_h      with q_lora_rank, queries read norm(W_dq x) in place of x",
)
