"""Vectors to scores: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import HeadSpec


class HeadConfig(PartConfig):
    softcap: float = Field(0.0, ge=0.0, description="logits become softcap * tanh(logits / softcap); 0 is off")


def specs() -> Iterable[HeadSpec]:
    yield HeadSpec("linear", HeadConfig, build="feeb_models.heads.linear:build_linear", summary="A matrix of its own.")
    yield HeadSpec("tied", HeadConfig, build="feeb_models.heads.linear:build_tied", summary="The embedding's matrix again.", reference="arXiv:1608.05859")
