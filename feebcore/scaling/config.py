"""Options of stage sweep."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from feebcore.config import StageConfig
from feebcore.parts import Part, PartKey, default_part
from feebcore.scaling.points import ParameterCount
from feebcore.train.config import TrainSection

CELL_DEFAULTS: dict[str, Any] = {"callbacks": ["metrics"], "compile": "off", "checkpoint_every": 0, "validation_every": 0}
"""Of `train:` where it does not say otherwise: cells are small and many."""


class SweepConfig(StageConfig):
    """Which cells to train, how, and what to fit.

    train: what all cells share; the planner overrides sizes and steps. parameter_count: which parameters N counts.
    bootstrap: resamples for intervals. eval_documents: held-out documents, evenly spaced and the same for all cells, that
    the loss (nats per token) is measured on; 0: the whole split. A cell whose `train:` has checkpoint_every
    resumes within itself.
    """

    train: TrainSection = Field(default_factory=lambda: TrainSection(**CELL_DEFAULTS))
    planner: Annotated[Part, PartKey("planners")]
    law: Annotated[Part, PartKey("laws")] = default_part("chinchilla")
    parameter_count: ParameterCount = "non_embedding"
    bootstrap: int = Field(default=200, ge=0)
    eval_documents: int = Field(default=16, ge=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _cells_share(cls, data: Any) -> Any:
        """Cells take the sweep's seed, and CELL_DEFAULTS."""
        if not isinstance(data, dict) or not isinstance(data.get("train", {}), dict):
            return data
        train = data.get("train") or {}
        return data | {"train": CELL_DEFAULTS | ({"seed": data["seed"]} if "seed" in data else {}) | train}
