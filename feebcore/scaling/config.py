"""Options of stage sweep."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from feebcore.config import StageConfig
from feebcore.parts import Part, PartKey, default_part
from feebcore.scaling.points import LEAST_DRAWS, ParameterCount
from feebcore.train.config import TrainSection

CELL_DEFAULTS: dict[str, Any] = {"callbacks": ["metrics"], "compile": "off", "checkpoint_every": 0, "validation_every": 0}
"""Defaults of `train:` in a sweep, whose runs are small and many."""


class SweepConfig(StageConfig):
    """Options of stage sweep: which runs to train, how, and the law to fit. A run that is stopped
    continues where it was; with `train.checkpoint_every`, so does one that is killed."""

    train: TrainSection = Field(default_factory=lambda: TrainSection(**CELL_DEFAULTS), description="settings shared by all runs of the sweep")
    planner: Annotated[Part, PartKey("planners")] = Field(description="chooses model sizes and FLOP budgets")
    law: Annotated[Part, PartKey("laws")] = Field(default_part("posterior"), description="form of the scaling law, and how it is fitted")
    parameter_count: ParameterCount = Field("non_embedding", description="parameters counted as N: total, non-embedding or matmul")
    target: float = Field(default=0.0, ge=0, description="training FLOPs whose best size and loss are forecast; 0: none")
    bootstrap: int = Field(default=200, ge=0, description="bootstrap resamples (or posterior draws) for confidence intervals, at least 100; 0: none")
    eval_documents: int = Field(
        default=32, ge=0, description="validation documents per run, evenly spaced and the same for all runs; 0: all. Few documents say little about others"
    )
    seed: int = Field(default=0, ge=0, description="random seed of the runs; default: the recipe's seed")

    @field_validator("bootstrap")
    @classmethod
    def _enough(cls, number: int) -> int:
        if 0 < number < LEAST_DRAWS:
            raise ValueError(f"at least {LEAST_DRAWS} for an interval, or 0 for none")
        return number

    @model_validator(mode="before")
    @classmethod
    def _cells_share(cls, data: Any) -> Any:
        """Runs take the sweep's seed, and CELL_DEFAULTS."""
        if not isinstance(data, dict) or not isinstance(data.get("train", {}), dict):
            return data
        train = data.get("train") or {}
        return data | {"train": CELL_DEFAULTS | ({"seed": data["seed"]} if "seed" in data else {}) | train}
