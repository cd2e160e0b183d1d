"""Where a token stands: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from feebcore import PartConfig
from feebcore.specs import PositionSpec


class RopeConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"position rope turns pairs, but head_dim {head_dim} is odd; set head_dim to {head_dim + 1} or change d_model / num_heads")


class SinusoidalConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)
    scale: float = Field(0.02, gt=0, description="amplitude; the embedding's own is about 0.02 at the start")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if d_model % 2:
            raise ValueError(f"position sinusoidal needs an even d_model, not {d_model}; set d_model to {d_model + 1}")


def specs() -> Iterable[PositionSpec]:
    yield PositionSpec("learned", build="feeb_models.positions.basic:build_learned", summary="A learnt vector a position, added.", reference="arXiv:1705.03122")
    yield PositionSpec(
        "sinusoidal",
        SinusoidalConfig,
        build="feeb_models.positions.basic:build_sinusoidal",
        summary="Sines and cosines of the position, added.",
        reference="arXiv:1706.03762",
    )
    yield PositionSpec(
        "rope",
        RopeConfig,
        build="feeb_models.positions.basic:build_rope",
        summary="Queries and keys turned by angles that grow with the position.",
        reference="arXiv:2104.09864",
    )
    yield PositionSpec(
        "none", build="feeb_models.positions.basic:build_none", summary="No position: causality alone tells order.", reference="arXiv:2305.19466"
    )
