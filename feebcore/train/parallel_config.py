"""Options of a run over several processes; no torch here, so that recipes are read without it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from feebcore.config import PartConfig


class ParallelConfig(PartConfig):
    """How one run is spread over processes. None of it changes what is trained, so it is not identity."""

    strategy: Literal["none", "ddp", "fsdp"] = Field(
        "none", description="none: one process; ddp: every rank holds the whole model; fsdp: weights, gradients and optimizer state are sharded"
    )
    ranks: int = Field(0, ge=0, description="processes on this machine; 0: one per GPU, or 1 without GPUs")

    @model_validator(mode="after")
    def _consistent(self) -> ParallelConfig:
        if self.strategy == "none" and self.ranks > 1:
            raise ValueError(f"ranks: {self.ranks} processes need strategy: ddp or fsdp")
        return self

    def num_processes(self, device: str) -> int:
        """As `StageConfig.num_processes`: 0 for one per GPU."""
        return 1 if self.strategy == "none" else self.ranks or (1 if device == "cpu" else 0)
