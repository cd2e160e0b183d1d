"""Initial weights: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import InitializationSpec


class NormalConfig(PartConfig):
    std: float = Field(0.02, gt=0)
    embedding_std: float | None = Field(None, gt=0, description="default: std")
    residual_scale: bool = Field(True, description="what is added to the stream starts smaller by sqrt(2 num_layers)")
    zero_residual: bool = Field(False, description="what is added to the stream starts at zero: every block is the identity at first")
    zero_lm_head: bool = Field(False, description="an untied head starts at zero, so the first loss is exactly ln V")


class DepthScaledConfig(PartConfig):
    std: float = Field(0.02, gt=0)


class TruncatedConfig(DepthScaledConfig):
    cut: float = Field(3.0, gt=0, description="nothing lies beyond so many deviations")
    residual_scale: bool = Field(True, description="what is added to the stream starts smaller by sqrt(2 num_layers)")


class GainConfig(PartConfig):
    gain: float = Field(1.0, gt=0, description="1 keeps the size of what goes through a matrix")
    std: float = Field(0.02, gt=0, description="of tables, of the map to the vocabulary and of weights of a part's own kind")
    residual_scale: bool = Field(True, description="what is added to the stream starts smaller by sqrt(2 num_layers)")


class BySizeConfig(GainConfig):
    size: Literal["fan_in", "average"] = Field("fan_in", description="what the variance is divided by: inputs, or the mean of inputs and outputs")
    uniform: bool = Field(False, description="even between two bounds, with the same deviation")


class XavierConfig(BySizeConfig):
    size: Literal["fan_in", "average"] = Field("average", description="what the variance is divided by: inputs, or the mean of inputs and outputs")


def specs() -> Iterable[InitializationSpec]:
    sizes = "feeb_models.initializations.by_size"
    yield InitializationSpec(
        "normal",
        NormalConfig,
        build="feeb_models.initializations.normal:build_normal",
        summary="Normal weights, smaller where they add to the stream.",
        reference="GPT-2",
        equation="W ~ N(0, std²);   maps to the stream N(0, std² / 2L)",
    )
    yield InitializationSpec(
        "truncated_normal",
        TruncatedConfig,
        build=f"{sizes}:build_truncated_normal",
        summary="Normal weights without the tails.",
        since="1.1",
        equation="W ~ N(0, σ²) given |w| ≤ cut σ,   σ = std;   maps to the stream σ = std / √(2L)",
    )
    yield InitializationSpec(
        "fan_in",
        BySizeConfig,
        build=f"{sizes}:build_by_size",
        summary="Matrices with deviation 1 / sqrt(inputs), times a gain (sqrt(2) is Kaiming's for ReLU).",
        reference="arXiv:1502.01852",
        since="1.1",
        equation="W ~ N(0, gain² / in);   maps to the stream N(0, gain² / (2L in));   tables and head N(0, std²)",
    )
    yield InitializationSpec(
        "xavier",
        XavierConfig,
        build=f"{sizes}:build_by_size",
        summary="Matrices with deviation sqrt(2 / (inputs + outputs)).",
        reference="https://proceedings.mlr.press/v9/glorot10a.html",
        since="1.1",
        equation="W ~ N(0, 2 gain² / (in + out));   maps to the stream: variance / 2L;   tables and head N(0, std²)",
    )
    yield InitializationSpec(
        "spectral",
        GainConfig,
        build=f"{sizes}:build_spectral",
        summary="Matrices with spectral norm of the size of sqrt(outputs / inputs), for feature learning at any width.",
        reference="arXiv:2310.17813",
        since="1.1",
        equation="W ~ N(0, σ²),   σ = gain min(1, √(out / in)) / √in;   maps to the stream σ / √(2L);   tables and head N(0, std²)",
    )
    yield InitializationSpec(
        "orthogonal",
        GainConfig,
        build=f"{sizes}:build_orthogonal",
        summary="Matrices with orthonormal rows or columns.",
        reference="arXiv:1312.6120",
        since="1.1",
        equation="W = gain Q,   QᵀQ = 1 or QQᵀ = 1;   maps to the stream gain Q / √(2L);   tables and head N(0, std²)",
    )
    yield InitializationSpec(
        "depth_scaled",
        DepthScaledConfig,
        build=f"{sizes}:build_depth_scaled",
        summary="Normal weights, and what adds to the stream is smaller the later its layer, by sqrt(2 layer).",
        reference="arXiv:1908.11365",
        since="1.1",
        equation="W ~ N(0, std²);   maps to the stream in layer l = 1 … L  N(0, std² / 2l)",
    )
