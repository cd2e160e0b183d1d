"""Planners `ladder` and `parametric_grid`: every size at every length, a rectangle in N and D for a parametric fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore.scaling.planning import Size

LEAST_RUNS = 8
"""Distinct runs below which a law has no interval."""

Amount = Annotated[float, Field(gt=0)]


class Heldout(feeb.PartConfig):
    """A run that is predicted before it is trained, and never fitted."""

    size: Size = Field(description="options of the architecture, or dotted keys of the train section")

    @property
    def length(self) -> float:
        raise NotImplementedError


class LadderHeldout(Heldout):
    multiple: float = Field(gt=0, description="multiple of tokens_per_parameter")

    @property
    def length(self) -> float:
        return self.multiple


class GridHeldout(Heldout):
    tokens: float = Field(gt=0, description="training tokens")

    @property
    def length(self) -> float:
        return self.tokens


class RectangleConfig(feeb.PartConfig):
    """Every size at every length; held-out runs last. key: the option that lists the lengths."""

    planner: ClassVar[str]
    key: ClassVar[str]
    unit: ClassVar[str]

    sizes: list[Size] = Field(min_length=2, description="model sizes, e.g. {d_model: 64, num_layers: 2}; dotted keys refer to the train section")
    budget: float | None = Field(None, gt=0, description="most training FLOPs of all runs together; null: no limit")
    branches: bool = Field(
        False,
        description="train what runs of one size have in common once: shorter ones begin where their learning-rate decay leaves the longest; needs schedule wsd",
    )
    max_epochs: float = Field(4.0, gt=0, description="most epochs of a run over the training data")
    min_steps: int = Field(50, ge=1, description="minimum optimizer steps; the batch size is halved until a run has enough")
    tolerance: float = Field(0.01, gt=0, lt=0.5, description="largest relative deviation from the tokens asked for")

    @property
    def lengths(self) -> Sequence[float]:
        raise NotImplementedError

    @property
    def held(self) -> Sequence[Heldout]:
        raise NotImplementedError

    def tokens_of(self, length: float, size: float) -> float:
        """D of a run of N = `size`."""
        raise NotImplementedError

    def label(self, length: float) -> str:
        """Of a length in the name of a run."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _spans(self) -> RectangleConfig:
        for key, values in (("sizes", self.sizes), (self.key, self.lengths)):
            if twice := [value for i, value in enumerate(values) if value in values[:i]]:
                raise ValueError(f"{key}: {twice[0]} is listed twice")
        if len(self.sizes) * len(self.lengths) < LEAST_RUNS:
            raise ValueError(
                f"{self.key}: {len(self.sizes)} sizes x {len(self.lengths)} {self.key} are fewer than the {LEAST_RUNS} distinct runs that an interval needs; "
                f"list more of either"
            )
        if max(self.lengths) < 2 * min(self.lengths):
            raise ValueError(f"{self.key}: {min(self.lengths):g} to {max(self.lengths):g} is less than a factor of 2, too narrow for a law; spread them")
        return self


class LadderConfig(RectangleConfig):
    """Sizes x multiples of tokens per parameter, N as the sweep counts it (`parameter_count`)."""

    planner = "ladder"
    key = "multiples"
    unit = "multiple"

    multiples: list[Amount] = Field([1.0, 2.0, 5.0, 10.0], min_length=2, description="multiples of tokens_per_parameter at which every size is trained")
    tokens_per_parameter: float = Field(20.0, gt=0, description="D / N at multiple 1")
    heldout: list[LadderHeldout] = Field([], description="held-out runs, {size: …, multiple: …}: predicted before they are trained, not used for the fit")

    @property
    def lengths(self) -> Sequence[float]:
        return self.multiples

    @property
    def held(self) -> Sequence[Heldout]:
        return self.heldout

    def tokens_of(self, length: float, size: float) -> float:
        return length * self.tokens_per_parameter * size

    def label(self, length: float) -> str:
        return f"x{length:g}"


class ParametricGridConfig(RectangleConfig):
    """Sizes x numbers of training tokens."""

    planner = "parametric_grid"
    key = "tokens"
    unit = "number of tokens"

    tokens: list[Amount] = Field(min_length=2, description="training tokens at which every size is trained")
    heldout: list[GridHeldout] = Field([], description="held-out runs, {size: …, tokens: …}: predicted before they are trained, not used for the fit")

    @property
    def lengths(self) -> Sequence[float]:
        return self.tokens

    @property
    def held(self) -> Sequence[Heldout]:
        return self.heldout

    def tokens_of(self, length: float, size: float) -> float:
        return length

    def label(self, length: float) -> str:
        return f"{length:.3g}".replace("+", "")


PARTS = (
    feeb.PlannerSpec(
        "ladder",
        LadderConfig,
        build=f"{__name__}.rectangle:Rectangle",
        summary="Model ladder: sizes x multiples of tokens per parameter, plus held-out runs to predict.",
        reference="arXiv:2412.04403",
    ),
    feeb.PlannerSpec(
        "parametric_grid",
        ParametricGridConfig,
        build=f"{__name__}.rectangle:Rectangle",
        summary="Sizes x numbers of training tokens, a rectangle in N and D for parametric fits, plus held-out runs to predict.",
        reference="arXiv:2203.15556",
    ),
)
