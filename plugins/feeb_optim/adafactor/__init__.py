"""Adafactor: factored second moments."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import DECOUPLED, RoleConfig


class AdafactorConfig(RoleConfig):
    lr: float = Field(0.02, ge=0, description="learning rate relative to the scale of the weights; at step t at most 1 / sqrt(t)")
    beta2_decay: float = Field(0.8, gt=0, le=1, description="the average of squares has decay rate 1 - t ** -beta2_decay at step t")
    clip_threshold: float = Field(1.0, ge=1, description="maximum root mean square of an update, before the learning rate")
    eps: float = Field(1e-8, gt=0, description="smallest root of a mean square")
    min_scale: float = Field(1e-3, ge=0, description="smallest scale that weights are taken to have")
    weight_decay: float = Field(0.0, ge=0, description=DECOUPLED)


PART = feeb.OptimizerSpec(
    "adafactor",
    AdafactorConfig,
    build=f"{__name__}.adafactor:Adafactor",
    summary="Factored second moments, updates relative to the scale of the weights.",
    reference="arXiv:1804.04235",
    since="1.1",
    equation="V_ij = row_i column_j / mean(row), averages of g² that forget by n^−beta2_decay;   U = g / √V, clipped to root mean square clip_threshold\n"
    "w −= max(min_scale, rms(w)) min(η, 1/√n) U",
)
