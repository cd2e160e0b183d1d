"""Feedforwards with structured matrices."""

from __future__ import annotations

import math

from pydantic import Field

import feebcore as feeb
from feeb_models.feedforwards.options import ExpansionConfig
from feebcore.model.config import ModelPartConfig


class MonarchConfig(ExpansionConfig):
    blocks: int = Field(4, ge=1, description="diagonal blocks per factor")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        for name, width in (("d_model", d_model), ("the hidden width", self.width(d_model))):
            if width % self.blocks:
                near = max(n for n in range(1, self.blocks) if width % n == 0)
                raise ValueError(f"{name} {width} does not divide into {self.blocks} blocks; set blocks to {near}")
        middle = min(d_model, self.width(d_model))
        if middle < self.blocks**2:
            raise ValueError(f"{self.blocks} blocks of {middle} channels leave channels that never meet; set blocks to {math.isqrt(middle)} or less")


class ButterflyConfig(ModelPartConfig):
    radix: int = Field(2, ge=2, description="channels that a block of a factor mixes; d_model must be a power of it")
    copies: int = Field(4, ge=1, description="hidden width / d_model")

    def check_shape(self, d_model: int, num_heads: int, head_dim: int) -> None:
        power = self.radix
        while power < d_model:
            power *= self.radix
        if power != d_model:
            raise ValueError(f"d_model {d_model} is not a power of radix {self.radix}; set d_model to {power // self.radix} or {power}, or another radix")


STRUCTURED = f"{__name__}.structured_matrices"

PARTS = (
    feeb.FeedforwardSpec(
        "monarch",
        MonarchConfig,
        build=f"{STRUCTURED}:MonarchFeedforward",
        summary="Monarch feedforward: W2 gelu(W1 x), each matrix two block-diagonal factors with a shuffle between.",
        reference="arXiv:2204.00595",
        since="1.1",
        equation="y = M2 gelu(M1 x),   M = P L P R\nR, L block-diagonal with `blocks` blocks; P: write as a table of `blocks` rows, read by columns",
    ),
    feeb.FeedforwardSpec(
        "butterfly",
        ButterflyConfig,
        build=f"{STRUCTURED}:ButterflyFeedforward",
        summary="Butterfly feedforward: W2 gelu(W1 x), each matrix log d_model sparse factors, as in a fast Fourier transform.",
        reference="arXiv:1903.05895",
        since="1.1",
        equation="y = Σ_c B2_c gelu(B1_c x),  c = 1 … copies,   B = F_{n−1} … F_1 F_0,   n = log_radix C\n"
        "F_j mixes the `radix` channels whose numbers differ in digit j (base radix)",
    ),
)
