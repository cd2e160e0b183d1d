"""Channel mixing: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

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
