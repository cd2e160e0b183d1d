"""The planner and the law, as `feeb_evals` offers them: options and hooks, nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, model_validator

import feebcore as feeb

Size = dict[str, Any]
"""One model size: options of the architecture (`d_model: 64`) or dotted keys of the train section (`optimizer.lr: 0.02`)."""


class Budget(feeb.PartConfig):
    """Cells of one isoFLOP curve. flops: training FLOPs, exact (3 x forward, full attention, head).

    sizes: in place of the planner's own.
    """

    flops: float = Field(gt=0)
    sizes: list[Size] = []


class Heldout(feeb.PartConfig):
    """A cell that is predicted before it is run and never fitted."""

    flops: float = Field(gt=0)
    size: Size


class IsoflopConfig(feeb.PartConfig):
    """Every size at every budget; steps solved from the exact FLOPs.

    tolerance: largest relative miss of a budget. min_steps: where the batch of the train section would make fewer
    steps than this, it is halved until there are enough (a tiny budget needs updates more than large batches).
    """

    sizes: list[Size] = []
    budgets: Annotated[list[Budget], Field(min_length=1)]
    heldout: list[Heldout] = []
    tolerance: float = Field(default=0.01, gt=0, lt=0.5)
    min_steps: int = Field(default=50, ge=1)

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


class ChinchillaConfig(feeb.PartConfig):
    """grid: 'fast' starts from 108 points made from the data, 'published' from the 4,500 of Hoffmann et al. (minutes)."""

    grid: str = Field(default="fast", pattern="^(fast|published)$")


@feeb.hookimpl
def feeb_planners() -> Iterable[feeb.PlannerSpec]:
    yield feeb.PlannerSpec(
        "isoflop",
        IsoflopConfig,
        build="feeb_evals.planners:build",
        summary="Several sizes at each of several FLOP budgets, and held-out cells.",
        reference="arXiv:2203.15556",
    )


@feeb.hookimpl
def feeb_laws() -> Iterable[feeb.LawSpec]:
    yield feeb.LawSpec(
        "chinchilla",
        ChinchillaConfig,
        build="feeb_evals.laws:build",
        summary="L = E + A / N^alpha + B / D^beta by Huber loss on the logarithm, with bootstrap intervals and flags.",
        reference="arXiv:2203.15556, arXiv:2404.10102",
    )
