"""SGD with momentum, optionally Nesterov."""

from __future__ import annotations

from pydantic import Field, model_validator

import feebcore as feeb
from feeb_optim.roles import L2_PENALTY, LR, RoleConfig


class SgdConfig(RoleConfig):
    lr: float = Field(0.1, ge=0, description=LR)
    momentum: float = Field(0.9, ge=0, lt=1, description="decay rate of the momentum buffer")
    nesterov: bool = Field(False, description="Nesterov momentum")
    weight_decay: float = Field(0.0, ge=0, description=L2_PENALTY)

    @model_validator(mode="after")
    def _has_momentum(self) -> SgdConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: it needs momentum above 0")
        return self


PART = feeb.OptimizerSpec(
    "sgd",
    SgdConfig,
    build=f"{__name__}.sgd:SGD",
    summary="SGD with momentum, optionally Nesterov.",
    reference="Sutskever et al. 2013",
    since="1.1",
    equation="g += λ w;   m = μ m + g  (m = g at first);   w −= η m      nesterov: η (g + μ m)",
)
