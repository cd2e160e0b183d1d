"""Channel mixing: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from feebcore import PartConfig
from feebcore.specs import FeedforwardSpec


class FeedforwardConfig(PartConfig):
    multiple: float = Field(4.0, gt=0, description="hidden width as a multiple of d_model, rounded to a multiple of 32")
    hidden: int | None = Field(None, ge=1, description="hidden width; wins over multiple")
    bias: bool = False
    norm_before_out: bool = Field(False, description="an RMSNorm between the activation and the last matrix")

    def width(self, d_model: int) -> int:
        return self.hidden or max(32, round(self.multiple * d_model / 32) * 32)


class SwigluConfig(FeedforwardConfig):
    multiple: float = Field(8 / 3, gt=0, description="hidden width as a multiple of d_model, rounded to a multiple of 32")


class MoeConfig(PartConfig):
    num_experts: int = Field(8, ge=2, description="routed experts")
    top_k: int = Field(2, ge=1, description="routed experts a token goes to")
    num_shared: int = Field(2, ge=0, description="experts that every token goes through")
    multiple: float = Field(2 / 3, gt=0, description="width of one expert as a multiple of d_model, rounded to a multiple of 32")
    hidden: int | None = Field(None, ge=1, description="width of one expert; wins over multiple")
    activation: Literal["swiglu", "geglu", "gelu", "relu", "relu_squared"] = "swiglu"
    router: Literal["softmax", "gumbel", "sigmoid"] = Field(
        "softmax", description="gumbel: softmax with noise in training; sigmoid: each expert by itself, balanced by a bias that is no weight"
    )
    normalize: bool | None = Field(None, description="the gates of a token's experts sum to 1; default: with router sigmoid, where top_k is above 1")
    gate_scale: float = Field(1.0, gt=0, description="what the gates are multiplied with")
    noise: float = Field(1.0, ge=0, description="router gumbel: size of the noise on the logits")
    bias_rate: float = Field(1e-3, ge=0, description="router sigmoid: how far the balancing bias moves each optimizer step")
    balance_loss: float | None = Field(None, ge=0, description="weight of the load-balancing loss; default 0.01, for router sigmoid 0.0001")
    z_loss: float = Field(0.0, ge=0, description="weight of the mean squared log-partition of the router's logits; 0.001 is usual")
    capacity: float | None = Field(
        None, gt=0, description="in training an expert takes at most capacity * top_k / num_experts of a row's tokens, the first ones; default: all of them"
    )

    def width(self, d_model: int) -> int:
        return self.hidden or max(32, round(self.multiple * d_model / 32) * 32)

    @property
    def normalizes(self) -> bool:
        return (self.router == "sigmoid" and self.top_k > 1) if self.normalize is None else self.normalize

    @property
    def balance_weight(self) -> float:
        return (1e-4 if self.router == "sigmoid" else 1e-2) if self.balance_loss is None else self.balance_loss

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} of {self.num_experts} experts; set top_k to {self.num_experts} or less, or num_experts to {self.top_k} or more"
            )
        if self.normalize and self.top_k == 1:
            raise ValueError("normalize with top_k 1 makes every gate 1, and the router never learns; leave normalize out, or set top_k to 2 or more")
        return self


class ProductKeyConfig(PartConfig):
    num_keys: int = Field(64, ge=2, description="sub-keys of each half; there are num_keys^2 values")
    heads: int = Field(4, ge=1, description="queries a token makes")
    top_k: int = Field(16, ge=1, description="values a query reads")
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
    heads: int = Field(8, ge=1, description="queries a token makes")


class UltraMemConfig(ProductKeyConfig):
    cores: int = Field(2, ge=1, description="segments of a value, each with a score of its own")
    expansion: int = Field(4, ge=1, description="keys a value has, each with a projection of its own")
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


class MonarchConfig(PartConfig):
    multiple: float = Field(4.0, gt=0, description="hidden width as a multiple of d_model, rounded to a multiple of 32")
    hidden: int | None = Field(None, ge=1, description="hidden width; wins over multiple")
    blocks: int = Field(4, ge=1, description="diagonal blocks of each factor")

    def width(self, d_model: int) -> int:
        return self.hidden or max(32, round(self.multiple * d_model / 32) * 32)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        for name, width in (("d_model", d_model), ("the hidden width", self.width(d_model))):
            if width % self.blocks:
                near = max(n for n in range(1, self.blocks) if width % n == 0)
                raise ValueError(f"{name} {width} does not divide into {self.blocks} blocks; set blocks to {near}")
        middle = min(d_model, self.width(d_model))
        if middle < self.blocks**2:
            raise ValueError(f"{self.blocks} blocks of {middle} channels leave channels that never meet; set blocks to {math.isqrt(middle)} or less")


class ButterflyConfig(PartConfig):
    radix: int = Field(2, ge=2, description="channels that a block of a factor mixes; d_model must be a power of it")
    copies: int = Field(4, ge=1, description="hidden width as a multiple of d_model")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        power = self.radix
        while power < d_model:
            power *= self.radix
        if power != d_model:
            raise ValueError(f"d_model {d_model} is no power of radix {self.radix}; set d_model to {power // self.radix} or {power}, or another radix")


def specs() -> Iterable[FeedforwardSpec]:
    yield FeedforwardSpec(
        "gelu",
        FeedforwardConfig,
        build="feeb_models.feedforwards.dense:build_gelu",
        summary="W2 gelu(W1 x).",
        reference="arXiv:1606.08415",
        equation="y = W2 gelu(W1 x),   gelu(z) = z (1 + tanh(√(2/π) (z + 0.044715 z³))) / 2",
    )
    yield FeedforwardSpec(
        "relu",
        FeedforwardConfig,
        build="feeb_models.feedforwards.dense:build_relu",
        summary="W2 relu(W1 x).",
        reference="arXiv:1706.03762",
        equation="y = W2 max(0, W1 x)",
    )
    yield FeedforwardSpec(
        "relu_squared",
        FeedforwardConfig,
        build="feeb_models.feedforwards.dense:build_relu_squared",
        summary="W2 relu(W1 x)^2.",
        reference="arXiv:2109.08668",
        equation="y = W2 max(0, W1 x)²",
    )
    yield FeedforwardSpec(
        "swiglu",
        SwigluConfig,
        build="feeb_models.feedforwards.dense:build_swiglu",
        summary="W2 (silu(W1 x) * W3 x).",
        reference="arXiv:2002.05202",
        equation="y = W2 (silu(W1 x) * W3 x),   silu(z) = z / (1 + exp(−z))",
    )
    yield FeedforwardSpec(
        "geglu",
        SwigluConfig,
        build="feeb_models.feedforwards.dense:build_geglu",
        summary="W2 (gelu(W1 x) * W3 x).",
        reference="arXiv:2002.05202",
        since="1.1",
        equation="y = W2 (gelu(W1 x) * W3 x)      gelu(z) as in gelu",
    )
    yield FeedforwardSpec(
        "affine_gelu",
        FeedforwardConfig,
        build="feeb_models.feedforwards.dense:build_affine_gelu",
        summary="W2 gelu(a * W1 x + b), with a scale a and a shift b learned for each hidden unit.",
        reference="arXiv:1606.08415",
        since="1.1",
        equation="y = W2 gelu(a * W1 x + b)      a, b [F] learned, 1 and 0 at first",
    )
    yield FeedforwardSpec(
        "ngpt",
        SwigluConfig,
        build="feeb_models.feedforwards.ngpt:build_ngpt",
        summary="W2 (s_u W1 x * silu(s_v W3 x)) with unit rows or columns and learned gains.",
        reference="arXiv:2410.01131",
        since="1.1",
        breaks=("residual_maps_are_last",),  # the last matrix is normed as it is used
        equation="y = W_2 (s_u W_1 x * silu(√C s_v W_3 x)), s_u and s_v learned, 1 at first; rows of W_1, W_3 and columns of W_2 have unit norm",
    )
    yield FeedforwardSpec(
        "moe",
        MoeConfig,
        build="feeb_models.feedforwards.moe:build_moe",
        summary="Mixture of shared and routed experts, the top k of them for each token; nothing dropped unless capacity says so.",
        reference="arXiv:2401.06066",
        since="1.1",
        equation="y = shared(x) + Σ_{e in top_k of p} gate_scale p_e expert_e(x),   p = softmax(W_r x),   expert_e(x) = W2_e (silu(W1_e x) * W3_e x)\n"
        "loss + balance_loss E Σ_e f_e P_e      f_e: share of a row's choices that fell on e, P_e: mean of p_e over the row",
        revision=2,  # padding is left out of loads, losses and capacity
    )
    yield FeedforwardSpec(
        "product_key_memory",
        ProductKeyConfig,
        build="feeb_models.feedforwards.memories:build_product_key_memory",
        summary="Reads the best of num_keys^2 values, found by pairs of sub-keys.",
        reference="arXiv:1907.05242",
        since="1.1",
        equation="[q1; q2] = rms(W_h x);   s_ij = q1·k1_h,i + q2·k2_h,j\n"
        "y = Σ_h Σ_{ij in top_k of s} softmax(s)_ij v_ij      softmax over those found; v shared by heads",
    )
    yield FeedforwardSpec(
        "peer",
        PeerConfig,
        build="feeb_models.feedforwards.memories:build_peer",
        summary="num_keys^2 experts of one hidden unit, found by pairs of sub-keys.",
        reference="arXiv:2407.04153",
        since="1.1",
        equation="y = Σ_h Σ_{ij in top_k of s} softmax(s)_ij gelu(u_ij·x) v_ij      s as in product_key_memory",
    )
    yield FeedforwardSpec(
        "ultramem",
        UltraMemConfig,
        build="feeb_models.feedforwards.memories:build_ultramem",
        summary="Memory with a score for each segment of a value and several projected uses of each: UltraMem without Tucker scores and skips over layers.",
        reference="arXiv:2411.12364",
        since="1.1",
        equation="s_ij,m = q1·k1_h,i,m + q2·k2_h,j,m,  m = 1 … cores;   found: the top_k of Σ_m s_ij,m;   key ij is number n = i num_keys + j\n"
        "y = Σ_e W_e Σ_{h, found n in block e} [s_n,m v_{n mod S},m]_m,   S = num_keys² / expansion values;   block e: n from e S on, S of them",
    )
    yield FeedforwardSpec(
        "monarch",
        MonarchConfig,
        build="feeb_models.feedforwards.structured:build_monarch",
        summary="W2 gelu(W1 x), each matrix two block-diagonal factors with a shuffle between.",
        reference="arXiv:2204.00595",
        since="1.1",
        equation="y = M2 gelu(M1 x),   M = P L P R\nR, L block-diagonal with `blocks` blocks; P: write as a table of `blocks` rows, read by columns",
    )
    yield FeedforwardSpec(
        "butterfly",
        ButterflyConfig,
        build="feeb_models.feedforwards.structured:build_butterfly",
        summary="W2 gelu(W1 x), each matrix log d_model sparse factors, as in a fast Fourier transform.",
        reference="arXiv:1903.05895",
        since="1.1",
        equation="y = Σ_c B2_c gelu(B1_c x),  c = 1 … copies,   B = F_{n−1} … F_1 F_0,   n = log_radix C\n"
        "F_j mixes the `radix` channels whose numbers differ in digit j (base radix)",
    )
