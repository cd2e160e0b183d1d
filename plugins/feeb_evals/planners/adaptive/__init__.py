"""Planner `adaptive`: a budget and a target in; each rung of runs is placed by what the ones before it have shown."""

from __future__ import annotations

from pydantic import Field

import feebcore as feeb
from feebcore.scaling.planning import Size


class AdaptiveConfig(feeb.PartConfig):
    """How a budget is spent. Four rungs of runs at 1/270, 1/90, 1/30 and 1/10 of it, a held-out run at 3/10, a probe of learning rates
    before them, and what is left where it helps the forecast most."""

    budget: float = Field(gt=0, description="training FLOPs of all runs together")
    sizes: list[Size] = Field(
        [],
        description="model sizes to choose from, at least 4, e.g. {d_model: 64, num_layers: 2}; empty: widths that are multiples of width_step",
    )
    width_step: int = Field(8, ge=2, multiple_of=2, description="step between widths (d_model), where sizes is empty")
    head_dim: int | None = Field(
        32, ge=2, multiple_of=2, description="least channels of an attention head, where sizes is empty; null: the recipe's num_heads at every width"
    )
    aspect_ratio: float | None = Field(None, gt=0, description="d_model / num_layers, where sizes is empty; null: the recipe's num_layers at every width")
    tokens_per_parameter: float = Field(20.0, gt=0, description="first guess of the best D / N, until runs have shown it")
    min_tokens_per_parameter: float = Field(2.0, gt=0, description="D / N below which no run is placed")
    min_steps: int = Field(500, ge=10, description="minimum optimizer steps; the batch size is halved until a run has enough")
    max_epochs: float = Field(4.0, gt=0, description="most epochs over the training data that the target may need")
    rate_factors: list[float] = Field([0.5, 1.0, 2.0], description="multiples of the learning rates that the probe tries; empty: no probe")
    seeds: int = Field(3, ge=1, description="seeds of one cheap run, which tell the noise of a run")
    tolerance: float = Field(0.0, ge=0, description="relative standard deviation of the forecast at which no further runs are placed")
    budget_tolerance: float = Field(0.02, gt=0, lt=0.5, description="largest relative deviation of a run from its FLOPs")


PART = feeb.PlannerSpec(
    "adaptive",
    AdaptiveConfig,
    build=f"{__name__}.adaptive:Adaptive",
    summary="Spends a total budget: learning-rate probe, four rungs placed one after the other, a held-out run, the rest where it helps the target most.",
)
