"""Built-in optimizers, schedules and rate rules: names and options; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore import PartConfig

Role = Literal["matrix", "embedding", "head", "vector"]


class AdamWConfig(PartConfig):
    """Rates by role: a role without one of its own uses `lr`."""

    lr: float = Field(3e-3, ge=0, description="of weight matrices inside blocks, and of roles that name no other")
    embedding_lr: float | None = Field(None, ge=0)
    head_lr: float | None = Field(None, ge=0)
    vector_lr: float | None = Field(None, ge=0, description="of norms, biases and scalars")
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0, description="decoupled: weights shrink by lr * weight_decay a step")
    decayed: list[Role] = Field(["matrix", "embedding", "head"], description="roles that decay")

    @model_validator(mode="after")
    def _in_range(self) -> AdamWConfig:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: {self.betas} must be at least 0 and below 1")
        return self


class MuonConfig(AdamWConfig):
    """Muon for block matrices at rate `lr`; AdamW for the other roles at theirs."""

    lr: float = Field(0.02, ge=0, description="of weight matrices inside blocks; an update has spectral norm of about 1")
    embedding_lr: float | None = Field(0.02, ge=0)
    head_lr: float | None = Field(0.004, ge=0)
    vector_lr: float | None = Field(0.01, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    momentum_warmup: int = Field(0, ge=0, description="steps over which momentum rises from 0.85")
    nesterov: bool = True
    ns_steps: int = Field(5, ge=1, description="Newton-Schulz iterations")
    betas: tuple[float, float] = (0.8, 0.95)
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    decayed: list[Role] = ["matrix"]


class ConstantConfig(PartConfig):
    warmup_steps: int = Field(0, ge=0, description="steps over which the rate rises to its full value")
    warmup_fraction: float = Field(0.0, ge=0, le=1, description="the same as a share of the run; warmup_steps wins")

    def check_run(self, max_steps: int) -> list[str]:
        if self.warmup_steps > max_steps:
            return [f"warmup_steps: {self.warmup_steps} is more than max_steps {max_steps}, so the full rate is never reached"]
        return []

    def warmup(self, total_steps: int) -> int:
        return self.warmup_steps or round(self.warmup_fraction * total_steps)


class DecayConfig(ConstantConfig):
    final_fraction: float = Field(0.0, ge=0, le=1, description="share of the full rate that the decay ends at")


class WsdConfig(DecayConfig):
    decay_fraction: float = Field(0.2, ge=0, le=1, description="share of the run in which the rate decays")
    shape: Literal["linear", "cosine", "one_minus_sqrt"] = "linear"


class InverseWidthConfig(PartConfig):
    reference_width: int = Field(256, ge=1, description="d_model at which the recipe's rates were found")


@feeb.hookimpl
def feeb_optimizers() -> Iterable[feeb.OptimizerSpec]:
    yield feeb.OptimizerSpec(
        "adamw", AdamWConfig, build="feeb_optim.adamw:build", summary="Adam with decoupled weight decay, rates by role.", reference="arXiv:1711.05101"
    )
    yield feeb.OptimizerSpec(
        "muon",
        MuonConfig,
        build="feeb_optim.muon:build",
        summary="Orthogonalised momentum for matrices, AdamW for the rest.",
        reference="https://kellerjordan.github.io/posts/muon/",
    )


@feeb.hookimpl
def feeb_schedules() -> Iterable[feeb.ScheduleSpec]:
    yield feeb.ScheduleSpec("constant", ConstantConfig, build="feeb_optim.schedules:build_constant", summary="The full rate, after a warmup.")
    yield feeb.ScheduleSpec("linear", DecayConfig, build="feeb_optim.schedules:build_linear", summary="A straight line down, after a warmup.")
    yield feeb.ScheduleSpec(
        "cosine", DecayConfig, build="feeb_optim.schedules:build_cosine", summary="Half a cosine down, after a warmup.", reference="arXiv:1608.03983"
    )
    yield feeb.ScheduleSpec(
        "wsd", WsdConfig, build="feeb_optim.schedules:build_wsd", summary="Warmup, a stable plateau, then a short decay.", reference="arXiv:2404.06395"
    )


@feeb.hookimpl
def feeb_rate_rules() -> Iterable[feeb.RateRuleSpec]:
    yield feeb.RateRuleSpec(
        "inverse_width",
        InverseWidthConfig,
        build="feeb_optim.rate_rules:build_inverse_width",
        summary="Matrix and head rates fall as 1 / d_model.",
        reference="arXiv:2203.03466",
    )
