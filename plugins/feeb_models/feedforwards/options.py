"""Options that several feedforwards have."""

from __future__ import annotations

from pydantic import Field

from feebcore.model.config import ModelPartConfig


class ExpansionConfig(ModelPartConfig):
    expansion_ratio: float = Field(4.0, gt=0, description="hidden width / d_model; the hidden width is rounded to a multiple of 32")
    intermediate_size: int | None = Field(None, ge=1, description="hidden width; takes precedence over expansion_ratio")

    def width(self, d_model: int) -> int:
        """The hidden width."""
        return self.intermediate_size or max(32, round(self.expansion_ratio * d_model / 32) * 32)


class FeedforwardConfig(ExpansionConfig):
    bias: bool = Field(False, description="biases in both matrices")
    norm_before_out: bool = Field(False, description="an RMSNorm between the activation and the last matrix")


class GatedConfig(FeedforwardConfig):
    expansion_ratio: float = Field(8 / 3, gt=0, description="hidden width / d_model; the hidden width is rounded to a multiple of 32")
