"""Rotary position embeddings, and variants for longer contexts than those trained on."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore.model.config import ModelPartConfig


class RopeConfig(ModelPartConfig):
    base: float = Field(10_000.0, gt=1, description="the slowest pair rotates by about 1 / base radians per position (rope_theta)")
    interleaved: bool = Field(False, description="pairs are dimensions 2i and 2i + 1, as in the paper; false: i and i + D/2")
    partial_rotary_factor: float = Field(1.0, gt=0, le=1, description="fraction of head dimensions that are rotated, the first ones, rounded to pairs")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"position rope rotates pairs, but head_dim {head_dim} is odd; set head_dim to {head_dim + 1} or change d_model / num_heads")

    def num_rotated(self, head_dim: int) -> int:
        """How many dimensions of a head of this width are rotated; at least one pair."""
        return max(2, 2 * round(self.partial_rotary_factor * head_dim / 2))


class ScaledRopeConfig(RopeConfig):
    factor: float = Field(4.0, ge=1, description="context length as a multiple of the one that the weights were trained on")


class YarnRopeConfig(ScaledRopeConfig):
    inert: ClassVar[tuple[str, ...]] = ("original_max_position_embeddings", "beta_fast")  # of contexts longer than a check's
    original_max_position_embeddings: int | None = Field(
        None, ge=1, description="context length in tokens that the weights were trained on; default seq_len / factor"
    )
    beta_slow: float = Field(1.0, gt=0, description="frequencies with fewer rotations in the original context are divided by factor")
    beta_fast: float = Field(32.0, gt=0, description="frequencies with more rotations in the original context are kept")

    @model_validator(mode="after")
    def _slow_is_below_fast(self) -> Self:
        if self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow {self.beta_slow:g} must be below beta_fast {self.beta_fast:g}: they bound the frequencies between")
        return self


class LlamaRopeConfig(YarnRopeConfig):
    beta_fast: float = Field(4.0, gt=0, description="frequencies with more rotations in the original context are kept")


ROPE = f"{__name__}.rope"

PARTS = (
    feeb.PositionSpec(
        "rope",
        RopeConfig,
        build=f"{ROPE}:Rope",
        summary="Rotary position embeddings (RoPE).",
        reference="arXiv:2104.09864",
        equation="rot_t: (a_i, b_i) → (a_i cos t w_i − b_i sin t w_i,  a_i sin t w_i + b_i cos t w_i)\n"
        "(a_i, b_i) = (q_i, q_{i+R/2}),   w_i = base^(−2i/R),   R = partial_rotary_factor D; the other dimensions stay",
    ),
    feeb.PositionSpec(
        "rope_linear",
        ScaledRopeConfig,
        build=f"{ROPE}:LinearRope",
        summary="RoPE with position interpolation: all positions divided by a factor, for longer contexts.",
        reference="arXiv:2306.15595",
        since="1.1",
        equation="rope with w_i / factor",
    ),
    feeb.PositionSpec(
        "rope_ntk",
        ScaledRopeConfig,
        build=f"{ROPE}:NtkRope",
        summary="NTK-aware RoPE: a larger base, so that slow frequencies stretch most, for longer contexts.",
        reference="arXiv:2309.00071",
        since="1.1",
        equation="rope with base factor^(R/(R−2)) in place of base",
    ),
    feeb.PositionSpec(
        "rope_yarn",
        YarnRopeConfig,
        build=f"{ROPE}:YarnRope",
        summary="YaRN: RoPE with slow frequencies stretched and sharper attention, for longer contexts.",
        reference="arXiv:2309.00071",
        since="1.1",
        equation="rope with w_i (κ_i + (1 − κ_i) / factor),   κ_i = clip((N w_i / 2π − beta_slow) / (beta_fast − beta_slow), 0, 1)\n"
        "N = original_max_position_embeddings;   scores times (1 + 0.1 ln(factor))²;   beta_slow 1, beta_fast 32",
    ),
    feeb.PositionSpec(
        "rope_llama3",
        LlamaRopeConfig,
        build=f"{ROPE}:Llama3Rope",
        summary="RoPE with slow frequencies stretched as in Llama 3.1, for longer contexts.",
        reference="arXiv:2407.21783",
        since="1.1",
        equation="as rope_yarn without the factor on scores;   beta_slow 1, beta_fast 4",
    ),
)
