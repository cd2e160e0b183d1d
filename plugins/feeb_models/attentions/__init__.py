"""How tokens look at each other: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import AttentionSpec


class MultiHeadConfig(PartConfig):
    qk_norm: bool = Field(False, description="normalise queries and keys with the model's norm, per head, before rotation")
    bias: bool = False
    softcap: float = Field(0.0, ge=0.0, description="scores become softcap * tanh(scores / softcap); 0 is off")


class GroupedQueryConfig(MultiHeadConfig):
    num_kv_heads: int = Field(2, ge=1)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if num_heads % self.num_kv_heads:
            fits = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            raise ValueError(f"attention.num_kv_heads {self.num_kv_heads} does not divide num_heads {num_heads}; set num_kv_heads to one of {fits}")


def specs() -> Iterable[AttentionSpec]:
    yield AttentionSpec(
        "mha", MultiHeadConfig, build="feeb_models.attentions.grouped:build_mha", summary="Multi-head causal attention.", reference="arXiv:1706.03762"
    )
    yield AttentionSpec(
        "gqa",
        GroupedQueryConfig,
        build="feeb_models.attentions.grouped:build_gqa",
        summary="Grouped-query attention: several query heads share a key/value head.",
        reference="arXiv:2305.13245",
    )
