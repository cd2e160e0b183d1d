"""SOAP: Adam in Shampoo's eigenbasis."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

import feebcore as feeb
from feeb_optim.roles import BETAS, SPLIT_FUSED, AdamWConfig


class SoapConfig(AdamWConfig):
    """SOAP for block matrices, AdamW for the other roles."""

    inert: ClassVar[tuple[str, ...]] = ("split_fused",)  # a check's matrices are not fused
    betas: tuple[float, float] = Field((0.95, 0.95), description=BETAS)
    shampoo_beta: float = Field(0.95, ge=0, lt=1, description="decay rate of the averages of G G^T and G^T G")
    precondition_every: int = Field(10, ge=1, description="update the eigenbases every N steps")
    max_precondition_dim: int = Field(4096, ge=1, description="a longer side of a matrix is not preconditioned")
    split_fused: bool = Field(True, description=f"precondition {SPLIT_FUSED}")


PART = feeb.OptimizerSpec(
    "soap",
    SoapConfig,
    build=f"{__name__}.soap:Soap",
    summary="SOAP: Adam in the eigenbasis of Shampoo's preconditioner for matrices, AdamW for everything else.",
    reference="arXiv:2409.11321",
    since="1.1",
    equation="L = lerp(L, G Gᵀ, 1 − β);   R = lerp(R, Gᵀ G, 1 − β);   Q_L, Q_R: their eigenvectors, renewed every precondition_every steps\n"
    "adam's m of G and v of Q_Lᵀ G Q_R;   W −= η Q_L [Q_Lᵀ m Q_R / (√v + eps)] Q_Rᵀ, bias-corrected;   then W −= η λ W;   the other roles: adamw",
)
