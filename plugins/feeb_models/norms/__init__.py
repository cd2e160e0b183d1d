"""Normalisation of the last dimension: options and names. One file a part or family beside this; factories load torch."""

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


def specs() -> Iterable[NormSpec]:
    yield NormSpec(
        "layernorm",
        LayerNormConfig,
        build="feeb_models.norms.classic:build_layernorm",
        summary="(x - mean) / deviation, with or without gain and shift.",
        reference="arXiv:1607.06450",
    )
    yield NormSpec(
        "rmsnorm",
        NormConfig,
        build="feeb_models.norms.classic:build_rmsnorm",
        summary="x / root mean square, with or without gain.",
        reference="arXiv:1910.07467",
    )
