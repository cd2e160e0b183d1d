"""Options that several attentions have."""

from __future__ import annotations

from pydantic import Field

from feebcore.model.config import ModelPartConfig


class AttentionConfig(ModelPartConfig):
    qk_norm: bool = Field(False, description="normalize queries and keys with the model's norm, per head, before rotation")
    bias: bool = Field(False, description="biases in the projections")
    logit_softcap: float = Field(
        0.0, ge=0.0, description="attention scores become logit_softcap * tanh(scores / logit_softcap) (attn_logit_softcapping); 0: off"
    )


def check_groups(num_kv_heads: int, num_heads: int) -> None:
    """Raises ValueError unless the query heads divide into groups of equal size."""
    if num_heads % num_kv_heads:
        fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
        raise ValueError(f"attention.num_kv_heads {num_kv_heads} does not divide num_heads {num_heads}; set num_kv_heads to one of {fits}")
