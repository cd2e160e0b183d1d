"""Channel mixing: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

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
    normalise: bool | None = Field(None, description="the gates of a token's experts sum to 1; default: with router sigmoid, where top_k is above 1")
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
    def normalises(self) -> bool:
        return (self.router == "sigmoid" and self.top_k > 1) if self.normalise is None else self.normalise

    @property
    def balance_weight(self) -> float:
        return (1e-4 if self.router == "sigmoid" else 1e-2) if self.balance_loss is None else self.balance_loss

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k {self.top_k} of {self.num_experts} experts; set top_k to {self.num_experts} or less, or num_experts to {self.top_k} or more"
            )
        if self.normalise and self.top_k == 1:
            raise ValueError("normalise with top_k 1 makes every gate 1, and the router never learns; leave normalise out, or set top_k to 2 or more")
        return self


def specs() -> Iterable[FeedforwardSpec]:
    yield FeedforwardSpec("gelu", FeedforwardConfig, build="feeb_models.feedforwards.dense:build_gelu", summary="W2 gelu(W1 x).", reference="arXiv:1606.08415")
    yield FeedforwardSpec("relu", FeedforwardConfig, build="feeb_models.feedforwards.dense:build_relu", summary="W2 relu(W1 x).", reference="arXiv:1706.03762")
    yield FeedforwardSpec(
        "relu_squared", FeedforwardConfig, build="feeb_models.feedforwards.dense:build_relu_squared", summary="W2 relu(W1 x)^2.", reference="arXiv:2109.08668"
    )
    yield FeedforwardSpec(
        "swiglu", SwigluConfig, build="feeb_models.feedforwards.dense:build_swiglu", summary="W2 (silu(W1 x) * W3 x).", reference="arXiv:2002.05202"
    )
    yield FeedforwardSpec(
        "geglu",
        SwigluConfig,
        build="feeb_models.feedforwards.dense:build_geglu",
        summary="W2 (gelu(W1 x) * W3 x).",
        reference="arXiv:2002.05202",
        since="1.1",
    )
    yield FeedforwardSpec(
        "affine_gelu",
        FeedforwardConfig,
        build="feeb_models.feedforwards.dense:build_affine_gelu",
        summary="W2 gelu(a * W1 x + b), with a scale a and a shift b learned for each hidden unit.",
        reference="arXiv:1606.08415",
        since="1.1",
    )
    yield FeedforwardSpec(
        "moe",
        MoeConfig,
        build="feeb_models.feedforwards.moe:build_moe",
        summary="Mixture of shared and routed experts, the top k of them for each token; nothing dropped unless capacity says so.",
        reference="arXiv:2401.06066",
        since="1.1",
    )
