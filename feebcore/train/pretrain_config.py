"""Options of stage pretrain."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from feebcore.config import Execution
from feebcore.data.addresses import without_secrets
from feebcore.train.config import TrainSection


class PretrainConfig(TrainSection):
    """Options of stage pretrain: those of a training run, where its tokens are read, and what it is scored on."""

    tokens_url: Execution[str] = Field(
        "", description="URL of a copy of the tokens.zarr folder to read instead, e.g. s3://bucket/tokens.zarr; it must hold the same tokens"
    )
    score_tokens: int = Field(
        262_144, ge=0, description="validation tokens of the final score, about N in whole documents, evenly spaced over the split; 0: all"
    )
    score_documents: int = Field(0, ge=0, description="validation documents of the final score, evenly spaced over the split; 0: all of them")
    original_steps: Execution[int] = Field(
        0,
        ge=0,
        description="max_steps of a longer run in the workspace, otherwise the same: begin at its last kept checkpoint of the steps that both train alike; 0: none",
    )

    @model_validator(mode="after")
    def _original_is_longer(self) -> PretrainConfig:
        if 0 < self.original_steps <= self.max_steps:
            raise ValueError(f"original_steps: {self.original_steps} is not more than max_steps {self.max_steps}; the original run is the longer one")
        return self

    @field_validator("tokens_url")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        if value and "://" not in value:
            raise ValueError(f"{value!r} is not a URL; write one such as s3://bucket/tokens.zarr, or leave the key out to read the artifact's own")
        return without_secrets(value)
