"""Initial weights: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import InitialisationSpec


class NormalConfig(PartConfig):
    std: float = Field(0.02, gt=0)
    embedding_std: float | None = Field(None, gt=0, description="default: std")
    residual_scale: bool = Field(True, description="what is added to the stream starts smaller by sqrt(2 num_layers)")
    zero_head: bool = Field(False, description="an untied head starts at zero, so the first loss is exactly ln V")


def specs() -> Iterable[InitialisationSpec]:
    yield InitialisationSpec(
        "normal",
        NormalConfig,
        build="feeb_models.initialisations.normal:build_normal",
        summary="Normal weights, smaller where they add to the stream.",
        reference="GPT-2",
    )
