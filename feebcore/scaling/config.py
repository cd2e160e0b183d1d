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
    """Options of stage sweep: which runs (cells) to train, how, and the law to fit. A cell whose `train:` sets checkpoint_every can
    resume from a checkpoint."""

    train: TrainSection = Field(default_factory=lambda: TrainSection(**CELL_DEFAULTS), description="training settings shared by all cells")
    planner: Annotated[Part, PartKey("planners")] = Field(description="decides which cells to train; sets their sizes and steps")
    law: Annotated[Part, PartKey("laws")] = Field(default_part("chinchilla"), description="functional form to fit")
    parameter_count: ParameterCount = Field("non_embedding", description="which parameters N counts")
    bootstrap: int = Field(default=200, ge=0, description="bootstrap resamples for confidence intervals; 0: none")
    eval_documents: int = Field(
        default=16, ge=0, description="validation documents, evenly spaced and the same for all cells, for the loss in nats per token; 0: the whole split"
    )
    seed: int = Field(default=0, ge=0, description="random seed of the cells; default: the recipe's seed")

    @model_validator(mode="before")
    @classmethod
    def _cells_share(cls, data: Any) -> Any:
        """Cells take the sweep's seed, and CELL_DEFAULTS."""
        if not isinstance(data, dict) or not isinstance(data.get("train", {}), dict):
            return data
        train = data.get("train") or {}
        return data | {"train": CELL_DEFAULTS | ({"seed": data["seed"]} if "seed" in data else {}) | train}
