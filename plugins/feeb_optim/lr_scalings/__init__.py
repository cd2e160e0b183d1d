"""Learning-rate scalings: learning rates tuned at one size, transferred to another."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig

WIDTH = "d_model at which the recipe's learning rates were tuned"
BATCH = "tokens per optimizer step at which they were tuned; 0: no scaling with the batch size"

TUNED = "at which the recipe's learning rates were tuned"


class InverseWidthConfig(PartConfig):
    reference_width: int = Field(256, ge=1, description=WIDTH)


class MupLRConfig(PartConfig):
    """References say where the recipe's learning rates were tuned; 0: no scaling with that size."""

    reference_width: int = Field(256, ge=1, description=WIDTH)
    reference_layers: int = Field(0, ge=0, description="num_layers at which they were tuned; 0: no scaling with depth")
    reference_batch_tokens: int = Field(0, ge=0, description=BATCH)
    width_exponent: float = Field(1.0, ge=0, le=1, description="exponent of 1 / width for matrices and output head: 1 for Adam-like optimizers, 0 for Muon")
    depth_exponent: float = Field(
        0.5, ge=0, le=1, description="exponent of 1 / layers for matrices: 0.5 with residual branches scaled by 1 / sqrt(layers), 0 with 1 / layers"
    )
    keep_decay: bool = Field(True, description="raise weight_decay as the learning rate falls, so that weights shrink equally per step")


class NanochatConfig(PartConfig):
    """References say where the recipe's learning rates were tuned; 0: no scaling with that size."""

    reference_width: int = Field(768, ge=1, description=WIDTH)
    reference_batch_tokens: int = Field(0, ge=0, description=BATCH)
    reference_steps: int = Field(0, ge=0, description="steps of the run at which weight_decay was tuned; 0: weight_decay is not scaled")


class HorizonConfig(PartConfig):
    """References say where the recipe's learning rates, betas and eps were tuned."""

    example: ClassVar[dict[str, Any]] = {"reference_tokens": 10_000_000, "reference_batch_tokens": 4096}
    reference_tokens: int = Field(ge=1, description="tokens of the run at which they were tuned")
    reference_batch_tokens: int = Field(0, ge=0, description=BATCH)
    token_exponent: float = Field(0.3, ge=0, le=1, description="exponent of 1 / tokens for learning rates")


class PorianConfig(PartConfig):
    example: ClassVar[dict[str, Any]] = {"reference_parameters": 1_000_000}
    reference_parameters: int = Field(
        ge=1, description=f"parameters of blocks and output head {TUNED}; 108,000,000 with lr 0.0047: the published learning rates themselves"
    )


class DeepSeekConfig(PartConfig):
    example: ClassVar[dict[str, Any]] = {"reference_flops": 1e14}
    reference_flops: float = Field(
        gt=0, description=f"training FLOPs, those of the output head left out, of the run {TUNED}; 1 with lr 0.3118: the published learning rates themselves"
    )


class StepLawConfig(PartConfig):
    example: ClassVar[dict[str, Any]] = {"reference_parameters": 1_000_000, "reference_tokens": 10_000_000}
    reference_parameters: int = Field(ge=1, description=f"parameters of blocks, without embedding and output head, {TUNED}")
    reference_tokens: int = Field(
        ge=1, description=f"tokens of the run {TUNED}; 1 with reference_parameters 1 and lr 1.79: the published learning rates themselves"
    )


_FACTORIES = f"{__name__}.lr_scalings"

PARTS = (
    feeb.LRScalingSpec(
        "inverse_width",
        InverseWidthConfig,
        build=f"{_FACTORIES}:InverseWidth",
        summary="Learning rates of matrices and output head scale as 1 / d_model.",
        reference="arXiv:2203.03466",
    ),
    feeb.LRScalingSpec(
        "mup_lr",
        MupLRConfig,
        build=f"{_FACTORIES}:MupLR",
        summary="µP's learning rates by width, depth and batch size, weight decay to match.",
        reference="arXiv:2203.03466, arXiv:2310.02244",
        since="1.1",
    ),
    feeb.LRScalingSpec(
        "nanochat",
        NanochatConfig,
        build=f"{_FACTORIES}:Nanochat",
        summary="nanochat's: learning rates of embedding and head by 1 / sqrt(width), all by sqrt(batch), Muon's weight decay by the run's tokens.",
        reference="https://github.com/karpathy/nanochat",
        since="1.1",
    ),
    feeb.LRScalingSpec(
        "horizon",
        HorizonConfig,
        build=f"{_FACTORIES}:Horizon",
        summary="Learning rates by tokens^-0.3 and sqrt(batch), Adam's beta2 by a constant half-life in tokens, its eps to match.",
        reference="https://github.com/marin-community/marin",
        equation="η ∝ √B D^−0.3;   β2 = β2^B;   eps ∝ √(D / B), with B and D over their references",
        since="1.1",
    ),
    feeb.LRScalingSpec(
        "porian",
        PorianConfig,
        build=f"{_FACTORIES}:Porian",
        summary="Learning rates by parameters^(-1/3); says which batch size goes with them.",
        reference="arXiv:2406.19146",
        equation="η = 0.0047 (N / 108e6)^(−1/3);   batch = 327,680 (N / 108e6)^(2/3) tokens",
        since="1.1",
    ),
    feeb.LRScalingSpec(
        "deepseek",
        DeepSeekConfig,
        build=f"{_FACTORIES}:DeepSeek",
        summary="Learning rates by FLOPs^-0.125; says which batch size goes with them.",
        reference="arXiv:2401.02954",
        equation="η = 0.3118 C^−0.125;   batch = 0.292 C^0.3271 tokens",
        since="1.1",
    ),
    feeb.LRScalingSpec(
        "steplaw",
        StepLawConfig,
        build=f"{_FACTORIES}:StepLaw",
        summary="Learning rates by parameters^-0.713 and tokens^0.307; says which batch size goes with them.",
        reference="arXiv:2503.04715",
        equation="η = 1.79 N^−0.713 D^0.307;   batch = 0.58 D^0.571 tokens",
        since="1.1",
    ),
)
