"""Muon and NorMuon: orthogonalized momentum."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import BETAS, DECOUPLED, EMBEDDING_LR, EPS, LM_HEAD_LR, SPLIT_FUSED, VECTOR_LR, AdamWConfig, Role


class MuonConfig(AdamWConfig):
    """Muon for block matrices at learning rate `lr`; AdamW for the other roles at theirs."""

    inert: ClassVar[tuple[str, ...]] = ("split_fused",)  # a check's matrices are not fused
    lr: float = Field(0.02, ge=0, description="learning rate of weight matrices inside blocks; an update has a spectral norm of about 1")
    embedding_lr: float | None = Field(0.02, ge=0, description=EMBEDDING_LR)
    lm_head_lr: float | None = Field(0.004, ge=0, description=LM_HEAD_LR)
    vector_lr: float | None = Field(0.01, ge=0, description=VECTOR_LR)
    momentum: float = Field(0.95, ge=0, lt=1, description="decay rate of the momentum of matrices")
    momentum_warmup: int = Field(0, ge=0, description="steps over which momentum rises from 0.85")
    nesterov: bool = Field(True, description="Nesterov momentum")
    split_fused: bool = Field(True, description=f"orthogonalize {SPLIT_FUSED}")
    ns_steps: int = Field(5, ge=1, description="Newton-Schulz iterations")
    ns_precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="precision of these iterations; auto: bf16 where the hardware supports it. In bf16 the order of sums shows sooner"
    )
    betas: tuple[float, float] = Field((0.8, 0.95), description=f"AdamW's {BETAS}")
    eps: float = Field(1e-10, gt=0, description=f"AdamW's: {EPS}")
    weight_decay: float = Field(0.0, ge=0, description=DECOUPLED)
    weight_decay_roles: list[Role] = Field(["matrix"], description="parameter roles with weight decay")


class NorMuonConfig(MuonConfig):
    beta2: float = Field(0.95, ge=0, lt=1, description="decay rate of the mean square of each row of the orthogonal update")


PARTS = (
    feeb.OptimizerSpec(
        "muon",
        MuonConfig,
        build=f"{__name__}.muon:Muon",
        summary="Muon: momentum orthogonalized by Newton-Schulz for matrices, AdamW for everything else.",
        reference="https://kellerjordan.github.io/posts/muon/",
        equation="m = lerp(m, g, 1 − μ);   u = lerp(g, m, μ);   matrices: W −= η (√max(1, rows / columns) NS(u) + λ W)\n"
        "NS(U S Vᵀ) ≈ U Vᵀ by ns_steps of X ← a X + (b X Xᵀ + c (X Xᵀ)²) X;   the other roles: adamw",
    ),
    feeb.OptimizerSpec(
        "normuon",
        NorMuonConfig,
        build=f"{__name__}.muon:NorMuon",
        summary="Muon with updates normalized per row, AdamW for the rest.",
        reference="arXiv:2510.05491",
        since="1.1",
        equation="O = NS(u) as in muon;   q = lerp(q, mean of O² over each row, 1 − β);   O ← O / √q · |O| / |O / √q|\nthen as muon with O in place of NS(u)",
    ),
)
