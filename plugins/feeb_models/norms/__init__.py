"""Normalization of the last dimension: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import NormSpec


class NormConfig(PartConfig):
    learnable: bool = True
    eps: float = Field(1e-6, gt=0)


class LayerNormConfig(NormConfig):
    eps: float = Field(1e-5, gt=0)
    bias: bool = Field(True, description="with learnable: a shift beside the gain")


class DynamicTanhConfig(PartConfig):
    alpha: float = Field(0.5, gt=0, description="first value of the learned scale inside tanh")
    learnable: bool = Field(True, description="a gain and a shift after tanh; the scale inside is always learned")


class BatchNormConfig(NormConfig):
    eps: float = Field(1e-5, gt=0)
    momentum: float = Field(0.1, gt=0, le=1, description="share of a batch in the running statistics that evaluation uses")


def specs() -> Iterable[NormSpec]:
    yield NormSpec(
        "layernorm",
        LayerNormConfig,
        build="feeb_models.norms.classic:build_layernorm",
        summary="(x - mean) / deviation, with or without gain and shift.",
        reference="arXiv:1607.06450",
        equation="y = gain * (x − mean(x)) / √(var(x) + eps) + shift      over the C channels",
    )
    yield NormSpec(
        "rmsnorm",
        NormConfig,
        build="feeb_models.norms.classic:build_rmsnorm",
        summary="x / root mean square, with or without gain.",
        reference="arXiv:1910.07467",
        equation="y = gain * x / √(mean(x²) + eps)      over the C channels",
    )
    yield NormSpec(
        "dynamic_tanh",
        DynamicTanhConfig,
        build="feeb_models.norms.dynamic_tanh:build_dynamic_tanh",
        summary="tanh(alpha x) with learned alpha, gain and shift: no statistics at all.",
        reference="arXiv:2503.10622",
        since="1.1",
        equation="y = gain * tanh(α x) + shift      α one learned number",
    )
    yield NormSpec(
        "batchnorm",
        BatchNormConfig,
        build="feeb_models.norms.batch:build_batchnorm",
        summary="Negative control: statistics over batch and time, so that training sees the future and other rows.",
        reference="arXiv:1502.03167",
        since="1.1",
        breaks=("causality", "batch_invariance", "document_isolation", "cache_parity", "left_padding_parity", "two_rank_parity"),
        equation="y = gain * (x − μ) / √(σ² + eps) + shift\n"
        "μ, σ² of each channel: in training over rows and places of the batch, in evaluation running averages",
    )
