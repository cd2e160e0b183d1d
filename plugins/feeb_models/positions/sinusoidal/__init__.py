"""Sinusoidal position encodings."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore.model.config import ModelPartConfig


class SinusoidalConfig(ModelPartConfig):
    base: float = Field(10_000.0, gt=1, description="wavelengths grow from 2π to 2π base positions")
    scale: float = Field(0.02, gt=0, description="amplitude; the embedding's own standard deviation is about 0.02 at the start")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if d_model % 2:
            raise ValueError(f"position sinusoidal needs an even d_model, not {d_model}; set d_model to {d_model + 1}")


PART = feeb.PositionSpec(
    "sinusoidal",
    SinusoidalConfig,
    build=f"{__name__}.sinusoidal:Sinusoidal",
    summary="Sinusoidal position encodings, added to the embedding.",
    reference="arXiv:1706.03762",
    equation="r_t = E[token_t] + scale [sin(t w); cos(t w)],   w_i = base^(−2i/C),  i = 0 … C/2 − 1",
)
