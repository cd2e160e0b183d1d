"""Weights whose standard deviation follows from the matrix's size or its layer, or that are orthogonal."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

import feebcore as feeb

RESIDUAL_SCALE = "divide residual projections by sqrt(2 num_layers)"
SIZE = "what the variance is divided by: inputs, or the mean of inputs and outputs"


class DepthScaledConfig(feeb.PartConfig):
    std: float = Field(0.02, gt=0, description="standard deviation σ")


class TruncatedConfig(DepthScaledConfig):
    cut: float = Field(3.0, gt=0, description="truncate beyond this number of standard deviations")
    residual_scale: bool = Field(True, description=RESIDUAL_SCALE)


class GainConfig(feeb.PartConfig):
    gain: float = Field(1.0, gt=0, description="factor on the weights; 1 keeps the variance of what goes through a matrix")
    std: float = Field(0.02, gt=0, description="standard deviation of embedding tables, the LM head and weights outside nn.Linear")
    residual_scale: bool = Field(True, description=RESIDUAL_SCALE)


class VarianceScalingConfig(GainConfig):
    size: Literal["fan_in", "average"] = Field("fan_in", description=SIZE)
    uniform: bool = Field(False, description="uniform distribution with the same standard deviation")


class XavierConfig(VarianceScalingConfig):
    size: Literal["fan_in", "average"] = Field("average", description=SIZE)


SCALING = f"{__name__}.variance_scaling"
REVISION = 2  # weights are drawn by name

PARTS = (
    feeb.InitializationSpec(
        "truncated_normal",
        TruncatedConfig,
        build=f"{SCALING}:TruncatedNormal",
        revision=REVISION,
        summary="Truncated N(0, σ), residual projections scaled down.",
        since="1.1",
        equation="W ~ N(0, σ²) given |w| ≤ cut σ,   σ = std;   maps to the stream σ = std / √(2L)",
    ),
    feeb.InitializationSpec(
        "fan_in",
        VarianceScalingConfig,
        build=f"{SCALING}:VarianceScaling",
        revision=REVISION,
        summary="LeCun normal: σ = gain / sqrt(fan_in); gain sqrt(2) is Kaiming's for ReLU.",
        reference="arXiv:1502.01852",
        since="1.1",
        equation="W ~ N(0, gain² / in);   maps to the stream N(0, gain² / (2L in));   tables and head N(0, std²)",
    ),
    feeb.InitializationSpec(
        "xavier",
        XavierConfig,
        build=f"{SCALING}:VarianceScaling",
        revision=REVISION,
        summary="Xavier (Glorot) normal: σ = sqrt(2 / (fan_in + fan_out)).",
        reference="https://proceedings.mlr.press/v9/glorot10a.html",
        since="1.1",
        equation="W ~ N(0, 2 gain² / (in + out));   maps to the stream: variance / 2L;   tables and head N(0, std²)",
    ),
    feeb.InitializationSpec(
        "spectral",
        GainConfig,
        build=f"{SCALING}:Spectral",
        revision=REVISION,
        summary="Spectral norms of the size of sqrt(fan_out / fan_in), for feature learning at any width.",
        reference="arXiv:2310.17813",
        since="1.1",
        equation="W ~ N(0, σ²),   σ = gain min(1, √(out / in)) / √in;   maps to the stream σ / √(2L);   tables and head N(0, std²)",
    ),
    feeb.InitializationSpec(
        "orthogonal",
        GainConfig,
        build=f"{SCALING}:Orthogonal",
        revision=REVISION,
        summary="Orthogonal matrices: orthonormal rows or columns.",
        reference="arXiv:1312.6120",
        since="1.1",
        equation="W = gain Q,   QᵀQ = 1 or QQᵀ = 1;   maps to the stream gain Q / √(2L);   tables and head N(0, std²)",
    ),
    feeb.InitializationSpec(
        "depth_scaled",
        DepthScaledConfig,
        build=f"{SCALING}:DepthScaled",
        revision=REVISION,
        summary="N(0, σ), residual projections of layer l scaled down by sqrt(2 l).",
        reference="arXiv:1908.11365",
        since="1.1",
        equation="W ~ N(0, std²);   maps to the stream in layer l = 1 … L  N(0, std² / 2l)",
    ),
)
