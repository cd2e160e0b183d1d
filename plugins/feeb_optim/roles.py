"""Options that optimizers share: learning rates and weight decay per role of parameters. Loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from feebcore import PartConfig

Role = Literal["matrix", "embedding", "lm_head", "vector"]

LR = "learning rate of weight matrices inside blocks, and of roles without one of their own"
EMBEDDING_LR = "learning rate of embedding tables; default: lr"
LM_HEAD_LR = "learning rate of an untied output head; default: lr"
VECTOR_LR = "learning rate of norms, biases and scalars; default: lr"
SPLIT_FUSED = "the maps in a fused matrix (q, k and v; gate and up) separately; false: the matrix as a whole"
DECOUPLED = "decoupled weight decay: weights shrink by lr * weight_decay per step"
L2_PENALTY = "L2 penalty: weight_decay * weights is added to the gradient"
EPS = "added to the denominator for numerical stability"
BETAS = "decay rates of the running averages of the gradient and of its square"


class RoleConfig(PartConfig):
    """Per-group learning rates: a role without one of its own uses `lr`."""

    lr: float = Field(3e-3, ge=0, description=LR)
    embedding_lr: float | None = Field(None, ge=0, description=EMBEDDING_LR)
    lm_head_lr: float | None = Field(None, ge=0, description=LM_HEAD_LR)
    vector_lr: float | None = Field(None, ge=0, description=VECTOR_LR)
    weight_decay: float = Field(0.1, ge=0, description=DECOUPLED)
    weight_decay_roles: list[Role] = Field(["matrix", "embedding", "lm_head"], description="parameter roles with weight decay")

    def lr_of(self, role: str) -> float:
        own = {"embedding": self.embedding_lr, "lm_head": self.lm_head_lr, "vector": self.vector_lr}.get(role)
        return self.lr if own is None else own

    def decay_of(self, role: str) -> float:
        return self.weight_decay if role in self.weight_decay_roles else 0.0


class AdamWConfig(RoleConfig):
    betas: tuple[float, float] = Field((0.9, 0.95), description=BETAS)
    eps: float = Field(1e-8, gt=0, description=EPS)

    @model_validator(mode="after")
    def _in_range(self) -> AdamWConfig:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: {self.betas} must be at least 0 and below 1")
        return self
