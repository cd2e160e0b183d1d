"""Where a token stands: options and names. One file a part or family beside this; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from feebcore import PartConfig
from feebcore.specs import PositionSpec


class RopeConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)
    pairing: Literal["half", "adjacent"] = Field("half", description="dimension i turns with i + D/2, or 2i with 2i + 1 as in the paper")
    fraction: float = Field(1.0, gt=0, le=1, description="share of a head's dimensions that turn, the first ones, rounded to pairs")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if head_dim % 2:
            raise ValueError(f"position rope turns pairs, but head_dim {head_dim} is odd; set head_dim to {head_dim + 1} or change d_model / num_heads")

    def num_rotated(self, head_dim: int) -> int:
        """How many dimensions of a head of this width turn; at least one pair."""
        return max(2, 2 * round(self.fraction * head_dim / 2))


class ScaledRopeConfig(RopeConfig):
    factor: float = Field(4.0, ge=1, description="windows are so many times longer than those that the weights were trained on")


class YarnRopeConfig(ScaledRopeConfig):
    trained_len: int | None = Field(None, ge=1, description="tokens of a window that the weights were trained on; default seq_len / factor")
    slow: float = Field(1.0, gt=0, description="frequencies that turn fewer times in a trained window are divided by factor")
    fast: float = Field(32.0, gt=0, description="frequencies that turn more times in a trained window stay")

    @model_validator(mode="after")
    def _slow_is_below_fast(self) -> Self:
        if self.slow >= self.fast:
            raise ValueError(f"slow {self.slow:g} must be below fast {self.fast:g}: they bound the frequencies between")
        return self


class LlamaRopeConfig(YarnRopeConfig):
    fast: float = Field(4.0, gt=0, description="frequencies that turn more times in a trained window stay")


class SinusoidalConfig(PartConfig):
    base: float = Field(10_000.0, gt=1)
    scale: float = Field(0.02, gt=0, description="amplitude; the embedding's own is about 0.02 at the start")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        if d_model % 2:
            raise ValueError(f"position sinusoidal needs an even d_model, not {d_model}; set d_model to {d_model + 1}")


def specs() -> Iterable[PositionSpec]:
    yield PositionSpec(
        "learned",
        build="feeb_models.positions.basic:build_learned",
        summary="A learned vector a position, added.",
        reference="arXiv:1705.03122",
        equation="r_t = E[token_t] + P[t]",
    )
    yield PositionSpec(
        "sinusoidal",
        SinusoidalConfig,
        build="feeb_models.positions.basic:build_sinusoidal",
        summary="Sines and cosines of the position, added.",
        reference="arXiv:1706.03762",
        equation="r_t = E[token_t] + scale [sin(t w); cos(t w)],   w_i = base^(−2i/C),  i = 0 … C/2 − 1",
    )
    yield PositionSpec(
        "rope",
        RopeConfig,
        build="feeb_models.positions.rope:build_rope",
        summary="Queries and keys turned by angles that grow with the position.",
        reference="arXiv:2104.09864",
        equation="rot_t: (a_i, b_i) → (a_i cos t w_i − b_i sin t w_i,  a_i sin t w_i + b_i cos t w_i)\n"
        "(a_i, b_i) = (q_i, q_{i+R/2}),   w_i = base^(−2i/R),   R = fraction D; the other dimensions stay",
    )
    yield PositionSpec(
        "none",
        build="feeb_models.positions.basic:build_none",
        summary="No position: causality alone tells order.",
        reference="arXiv:2305.19466",
        equation="r_t = E[token_t],   rot = identity,   b = 0",
    )
    for name, config, summary, reference, equation in (
        (
            "rope_linear",
            ScaledRopeConfig,
            "Rope with all positions divided by a factor, for longer windows.",
            "arXiv:2306.15595",
            "rope with w_i / factor",
        ),
        (
            "rope_ntk",
            ScaledRopeConfig,
            "Rope with a larger base (NTK-aware), so that slow frequencies stretch most, for longer windows.",
            "arXiv:2309.00071",
            "rope with base factor^(R/(R−2)) in place of base",
        ),
        (
            "rope_yarn",
            YarnRopeConfig,
            "Rope with slow frequencies stretched and sharper attention, for longer windows.",
            "arXiv:2309.00071",
            "rope with w_i (κ_i + (1 − κ_i) / factor),   κ_i = clip((trained_len w_i / 2π − slow) / (fast − slow), 0, 1)\n"
            "q and k times 1 + 0.1 ln(factor) each;   slow 1, fast 32",
        ),
        (
            "rope_llama3",
            LlamaRopeConfig,
            "Rope with slow frequencies stretched as in Llama 3.1, for longer windows.",
            "arXiv:2407.21783",
            "as rope_yarn without the factor on q and k;   slow 1, fast 4",
        ),
    ):
        build = f"feeb_models.positions.rope:build_{name.removeprefix('rope_')}"
        yield PositionSpec(name, config, build=build, summary=summary, reference=reference, equation=equation, since="1.1")
    yield PositionSpec(
        "alibi",
        build="feeb_models.positions.alibi:build_alibi",
        summary="Scores fall with the distance.",
        reference="arXiv:2108.12409",
        since="1.1",
        equation="b_h(t, s) = −m_h (t − s),   m_h = 2^(−8h/H),  h = 1 … H;   rot = identity",
    )
