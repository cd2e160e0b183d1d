"""Sparse memories that are read by product keys."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore.model.config import ModelPartConfig


class ProductKeyConfig(ModelPartConfig):
    num_keys: int = Field(64, ge=2, description="sub-keys per half; there are num_keys^2 values")
    heads: int = Field(4, ge=1, description="queries per token")
    top_k: int = Field(16, ge=1, description="values read per query")
    key_dim: int = Field(64, ge=2, description="width of a query; each half is compared with sub-keys")
    example: ClassVar[dict[str, Any]] = {"num_keys": 8, "heads": 2, "top_k": 4, "key_dim": 16}

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        if self.top_k > self.num_keys:
            raise ValueError(f"top_k {self.top_k} of {self.num_keys} sub-keys; set top_k to {self.num_keys} or less, or num_keys to {self.top_k} or more")
        if self.key_dim % 2:
            raise ValueError(f"key_dim {self.key_dim} has no two equal halves; set it to {self.key_dim + 1}")
        return self


class PeerConfig(ProductKeyConfig):
    heads: int = Field(8, ge=1, description="queries per token")


class UltraMemConfig(ProductKeyConfig):
    cores: int = Field(2, ge=1, description="segments of a value, each with a separate score")
    expansion: int = Field(4, ge=1, description="keys per value, each with a separate projection")
    value_dim: int | None = Field(None, ge=1, description="width of a value; default half of d_model")
    # without softmax the last value read weighs nearly as much as the first: of few, one that rounding swaps is much
    example: ClassVar[dict[str, Any]] = {"num_keys": 8, "heads": 2, "top_k": 8, "key_dim": 16}

    def width_of_value(self, d_model: int) -> int:
        return self.value_dim or d_model // 2

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if self.num_keys**2 % self.expansion:
            raise ValueError(f"{self.num_keys}^2 keys do not divide into expansion {self.expansion}; set expansion to a divisor of num_keys")
        return self

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if (width := self.width_of_value(d_model)) % self.cores:
            raise ValueError(f"values of width {width} do not divide into {self.cores} cores; set value_dim to {(width // self.cores + 1) * self.cores}")


MEMORY = f"{__name__}.product_key_memory"

PARTS = (
    feeb.FeedforwardSpec(
        "product_key_memory",
        ProductKeyConfig,
        build=f"{MEMORY}:ProductKeyMemory",
        summary="Product-key memory: reads the top k of num_keys^2 values, found by pairs of sub-keys.",
        reference="arXiv:1907.05242",
        since="1.1",
        equation="[q1; q2] = rms(W_h x);   s_ij = q1·k1_h,i + q2·k2_h,j\n"
        "y = Σ_h Σ_{ij in top_k of s} softmax(s)_ij v_ij      softmax over those found; v shared by heads",
    ),
    feeb.FeedforwardSpec(
        "peer",
        PeerConfig,
        build=f"{MEMORY}:Peer",
        summary="PEER: num_keys^2 experts of one hidden unit, retrieved by product keys.",
        reference="arXiv:2407.04153",
        since="1.1",
        equation="y = Σ_h Σ_{ij in top_k of s} softmax(s)_ij gelu(u_ij·x) v_ij      s as in product_key_memory",
    ),
    feeb.FeedforwardSpec(
        "ultramem",
        UltraMemConfig,
        build=f"{MEMORY}:UltraMem",
        summary="UltraMem without Tucker scores and skips over layers: a score per segment of a value, and several projections of each value.",
        reference="arXiv:2411.12364",
        since="1.1",
        equation="s_ij,m = q1·k1_h,i,m + q2·k2_h,j,m,  m = 1 … cores;   found: the top_k of Σ_m s_ij,m;   key ij is number n = i num_keys + j\n"
        "y = Σ_e W_e Σ_{h, found n in block e} [s_n,m v_{n mod S},m]_m,   S = num_keys² / expansion values;   block e: n from e S on, S of them",
    ),
)
