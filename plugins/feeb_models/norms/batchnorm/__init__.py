"""Batch normalization, as a negative control."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb


class BatchNormConfig(feeb.PartConfig):
    learnable: bool = Field(True, description="a learned gain and shift per channel")
    eps: float = Field(1e-5, gt=0, description="added to the variance")
    momentum: float = Field(0.1, gt=0, le=1, description="weight of a batch in the running statistics that evaluation uses")


PART = feeb.NormSpec(
    "batchnorm",
    BatchNormConfig,
    build=f"{__name__}.batchnorm:BatchNorm",
    summary="BatchNorm, a negative control: statistics over batch and time, so that training sees the future and other rows.",
    reference="arXiv:1502.03167",
    since="1.1",
    breaks=("causality", "batch_invariance", "document_isolation", "cache_parity", "left_padding_parity", "two_rank_parity"),
    equation="y = gain * (x − μ) / √(σ² + eps) + shift\n"
    "μ, σ² of each channel: in training over rows and positions of the batch, in evaluation running averages",
)
