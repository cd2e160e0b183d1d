"""Planner `mixture`: a swarm of small runs that differ in the shares of their sources, then the best mixture and the usual one at a larger scale."""

from __future__ import annotations

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore.scaling.planning import Size


class Scale(feeb.PartConfig):
    """Larger runs that check the recommendation: as many of the baseline as of the recommended mixture."""

    flops: float = Field(gt=0, description="training FLOPs of each run")
    size: Size = Field({}, description="options of the architecture, or dotted keys of the train section; empty: the recipe's size")
    seeds: int = Field(4, ge=2, description="seeds of each of the two mixtures")


class MixtureConfig(feeb.PartConfig):
    """Which mixtures are tried, at which size, and what the best one is compared with."""

    sources: list[str] = Field(min_length=2, description="sources to mix, by their names in the data")
    flops: float = Field(gt=0, description="training FLOPs of each run of the swarm")
    size: Size = Field({}, description="size of the swarm's models: options of the architecture, or dotted keys of the train section; empty: the recipe's")
    runs: int = Field(0, ge=0, description="runs of the swarm; 0: six for each source")
    baseline: dict[str, float] = Field({}, description="mixture to compare with, e.g. {web: 7, code: 3}; empty: equal shares")
    loss_weights: dict[str, float] = Field(
        {}, description="weights of the sources in the loss to minimize, the mean of their validation losses; empty: the sources equally"
    )
    scale: Scale | None = Field(None, description="larger runs that check the recommendation; null: none")
    least_share: float = Field(0.05, ge=0, lt=0.5, description="smallest fraction of samples that a source gets in the swarm")
    max_epochs: float = Field(4.0, gt=0, description="most epochs over a source in any run, and in the run that the mixture is for (target)")
    min_steps: int = Field(50, ge=1, description="minimum optimizer steps; the batch size is halved until a run has enough")
    tolerance: float = Field(0.01, gt=0, lt=0.5, description="largest relative deviation of a run from its FLOPs")

    @model_validator(mode="after")
    def _consistent(self) -> MixtureConfig:
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources: a name is listed twice")
        for key in ("baseline", "loss_weights"):
            weights = getattr(self, key)
            if weights and (min(weights.values()) < 0 or not sum(weights.values()) > 0):
                raise ValueError(f"{key}: weights of sources, none negative, not all 0, e.g. {{web: 7, code: 3}}")
        if others := [name for name in self.baseline if name not in self.sources]:
            raise ValueError(f"baseline: {others[0]!r} is not in sources ({', '.join(self.sources)})")
        if self.least_share * len(self.sources) >= 1:
            raise ValueError(f"least_share: {self.least_share:g} for each of {len(self.sources)} sources leaves nothing to vary; lower it")
        if 0 < self.runs < len(self.sources) + 5:
            raise ValueError(f"runs: {self.runs} runs cannot tell {len(self.sources)} sources apart; at least {len(self.sources) + 5}, better six a source")
        return self

    @property
    def num_runs(self) -> int:
        return self.runs or max(6 * len(self.sources), 10)


PART = feeb.PlannerSpec(
    "mixture",
    MixtureConfig,
    build=f"{__name__}.mixture:MixturePlanner",
    summary="A swarm of small runs with different mixtures of sources; then the best mixture, and the baseline, at a larger scale. Needs law mixture.",
    reference="arXiv:2407.01492",
)
