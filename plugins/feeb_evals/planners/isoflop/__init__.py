"""Planner `isoflop`: several sizes at each of several FLOP budgets."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore.scaling.planning import Size


class Budget(feeb.PartConfig):
    """Cells of one isoFLOP curve."""

    flops: float = Field(gt=0, description="training FLOPs, exact (3 x forward, full attention, LM head)")
    sizes: list[Size] = Field([], description="sizes at this budget; empty: the planner's own")


class Heldout(feeb.PartConfig):
    """A cell that is predicted before it is run and never fitted."""

    flops: float = Field(gt=0, description="training FLOPs")
    size: Size = Field(description="options of the architecture, or dotted keys of the train section")


class IsoflopConfig(feeb.PartConfig):
    """Every size at every budget; steps solved from the exact FLOPs."""

    sizes: list[Size] = Field([], description="model sizes, e.g. {d_model: 64, num_layers: 2}; dotted keys refer to the train section")
    budgets: list[Budget] = Field(min_length=1, description="FLOP budgets, numbers or {flops: …, sizes: […]}")
    heldout: list[Heldout] = Field([], description="held-out runs: predicted before they are trained, not used for the fit")
    tolerance: float = Field(0.01, gt=0, lt=0.5, description="largest relative deviation from a budget")
    min_steps: int = Field(50, ge=1, description="minimum optimizer steps; the batch size is halved until a run has enough")

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, data: Any) -> Any:
        """`budgets: [1e12, 2e12]` means the same as `budgets: [{flops: 1e12}, {flops: 2e12}]`."""
        if isinstance(data, dict) and isinstance(data.get("budgets"), list):
            data = data | {"budgets": [{"flops": b} if isinstance(b, int | float) else b for b in data["budgets"]]}
        return data

    @model_validator(mode="after")
    def _sized(self) -> IsoflopConfig:
        for budget in self.budgets:
            if not (budget.sizes or self.sizes):
                raise ValueError(f"sizes: the budget of {budget.flops:g} FLOPs has no sizes; list some, as in sizes: [{{d_model: 64, num_layers: 2}}]")
        return self


PART = feeb.PlannerSpec(
    "isoflop",
    IsoflopConfig,
    build=f"{__name__}.isoflop:Isoflop",
    summary="IsoFLOP sweep (Chinchilla approach 2): several model sizes per FLOP budget, plus held-out runs to predict.",
    reference="arXiv:2203.15556",
)
