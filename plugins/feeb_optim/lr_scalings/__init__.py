"""Learning-rate scalings: learning rates tuned at one size, transferred to another."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore import PartConfig

WIDTH = "d_model at which the recipe's learning rates were tuned"
BATCH = "tokens per optimizer step at which they were tuned; 0: no scaling with the batch size"


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
)
