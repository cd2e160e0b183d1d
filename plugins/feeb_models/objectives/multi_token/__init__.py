"""Multi-token prediction."""

from __future__ import annotations

from pydantic import Field, model_validator

import feebcore as feeb
from feeb_models.objectives.options import NextTokenConfig


class MultiTokenConfig(NextTokenConfig):
    k: int = Field(2, ge=1, description="predicted tokens, the next one among them; the LM head must predict k - 1 further ones")
    weights: tuple[float, ...] = Field((), description="weights of the k losses, the next token's first; empty: 1 each")

    @model_validator(mode="after")
    def _a_weight_each(self) -> MultiTokenConfig:
        if self.weights and len(self.weights) != self.k:
            raise ValueError(f"weights: {len(self.weights)} of them for k: {self.k} tokens; give one for each, the next token's first")
        return self


PART = feeb.ObjectiveSpec(
    "multi_token",
    MultiTokenConfig,
    build=f"{__name__}.multi_token:MultiToken",
    summary="Multi-token prediction (MTP) loss: next token plus the following k - 1 tokens; needs an LM head with MTP.",
    reference="arXiv:2404.19737",
    since="1.1",
    equation="loss = Σ_{j=1…k} w_j (1/N) Σ_t −log p_j(token_{t+j})      p_1: the head; p_j: its further token j − 1",
    revision=2,  # counts the FLOPs of all that it runs
)
