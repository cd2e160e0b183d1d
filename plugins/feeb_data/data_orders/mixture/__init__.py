"""Data order `mixture`: sources in given proportions."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

import feebcore as feeb

Proportions = dict[str, float]


class Phase(BaseModel):
    """Proportions from some moment of the run on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    begin: float | None = Field(None, gt=0, lt=1, description="fraction of the run after which the phase begins, e.g. 0.8")
    begin_step: int | None = Field(None, ge=1, description="the same in steps, where the run's length may change later")
    proportions: Proportions = Field(description="weight of each source in this phase")

    @field_validator("proportions")
    @classmethod
    def _positive(cls, value: Proportions) -> Proportions:
        return _checked(value)

    @model_validator(mode="after")
    def _begins_once(self) -> Phase:
        if (self.begin is None) == (self.begin_step is None):
            raise ValueError("begin and begin_step: give one of them")
        return self


def _checked(value: Proportions) -> Proportions:
    if not value or min(value.values()) < 0 or sum(value.values()) <= 0:
        raise ValueError("weights of sources, none negative, not all 0, e.g. {web: 7, code: 3}")
    return value


class MixtureConfig(feeb.DataOrderConfig):
    """Proportions of the samples that each source gets; sources that are not named get none."""

    by_source: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"proportions": {"a": 0.75, "b": 0.25}}

    proportions: Proportions = Field(description="weight of each source by its name in the data, e.g. {web: 7, code: 3}")
    phases: list[Phase] = Field([], description="other proportions later in the run, in order")

    @field_validator("proportions")
    @classmethod
    def _positive(cls, value: Proportions) -> Proportions:
        return _checked(value)

    def check_run(self, max_steps: int) -> list[str]:
        problems, last = [], 0
        for i, phase in enumerate(self.phases):
            step = phase.begin_step if phase.begin_step is not None else round((phase.begin or 0.0) * max_steps)
            if step <= last:
                problems.append(f"phases.{i}: it begins at step {step}, not after the phase before it; list phases in the order of the run")
            elif step >= max_steps:
                problems.append(f"phases.{i}: it would begin at step {step}, but the run ends after {max_steps}")
            last = step
        return problems

    def follows_length(self) -> bool:
        return any(phase.begin is not None for phase in self.phases)

    def source_names(self) -> list[str]:
        all_weights = (self.proportions, *(phase.proportions for phase in self.phases))
        return list(dict.fromkeys(name for weights in all_weights for name, weight in weights.items() if weight))


PART = feeb.DataOrderSpec(
    "mixture",
    MixtureConfig,
    build=f"{__name__}.mixture:build_mixture",
    summary="Sources in fixed proportions that may change in phases of the run.",
    reference="arXiv:2305.10429",
    since="1.1",
)
