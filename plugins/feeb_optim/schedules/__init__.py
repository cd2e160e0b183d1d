"""Learning-rate schedules: multipliers on the learning rate, pure functions of the step."""

from __future__ import annotations

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

import feebcore as feeb
from feebcore import Part, PartConfig, PartKey, default_part
from feebcore.errors import plural

Shape = Literal["linear", "cosine", "one_minus_sqrt"]
FINAL_FRACTION = "final learning rate as a fraction of the peak (min_lr_rate)"
DECAY_FRACTION = "fraction of the run spent decaying"
DECAY_SHAPE = "shape of the decay"


class ConstantConfig(PartConfig):
    warmup_steps: int = Field(0, ge=0, description="linear warmup over N steps")
    warmup_fraction: float = Field(0.0, ge=0, le=1, description="linear warmup over this fraction of the run; warmup_steps takes precedence")

    def check_run(self, max_steps: int) -> list[str]:
        if self.warmup_steps > max_steps:
            return [f"warmup_steps: {self.warmup_steps} is more than max_steps {max_steps}, so the peak learning rate is never reached"]
        return []

    def warmup(self, total_steps: int) -> int:
        return self.warmup_steps or round(self.warmup_fraction * total_steps)


class DecayConfig(ConstantConfig):
    final_fraction: float = Field(0.0, ge=0, le=1, description=FINAL_FRACTION)


class WsdConfig(DecayConfig):
    decay_fraction: float = Field(0.2, ge=0, le=1, description=DECAY_FRACTION)
    shape: Shape = Field("linear", description=DECAY_SHAPE)

    def check_run(self, max_steps: int) -> list[str]:
        problems, warmup, decay = super().check_run(max_steps), self.warmup(max_steps), round(self.decay_fraction * max_steps)
        if not problems and warmup + decay > max_steps:
            problems.append(f"decay_fraction: {plural(warmup, 'step')} of warmup and {decay} of decay are more than max_steps {max_steps}; lower one of them")
        return problems


class WsdSConfig(ConstantConfig):
    ends: list[float] = Field([0.25, 0.5, 1.0], min_length=1, description="ends of the decays as fractions of the run; the last is 1")
    decay_fraction: float = Field(0.1, gt=0, le=1, description="length of each decay, as a fraction of the steps up to its end")
    final_fraction: float = Field(0.1, gt=0, le=1, description="learning rate at the end of each decay as a fraction of the peak")
    shape: Literal["inverse", "linear", "cosine", "one_minus_sqrt"] = Field("inverse", description=f"{DECAY_SHAPE}; inverse: 1 / learning rate rises linearly")

    @model_validator(mode="after")
    def _ascending(self) -> WsdSConfig:
        if self.ends[-1] != 1.0 or self.ends[0] <= 0 or any(a >= b for a, b in itertools.pairwise(self.ends)):
            raise ValueError(f"ends: {self.ends} must ascend, from above 0 to exactly 1")
        return self


class InverseSqrtConfig(ConstantConfig):
    timescale: int = Field(
        0, ge=0, description="steps after the warmup over which the learning rate falls to 0.71 of the peak; 0: the warmup's length, at least 1"
    )


class ExponentialConfig(ConstantConfig):
    final_fraction: float = Field(0.1, gt=0, le=1, description=FINAL_FRACTION)


class PowerConfig(ConstantConfig):
    exponent: float = Field(0.51, ge=0, description="the learning rate is proportional to step ** -exponent")
    onset_steps: int = Field(0, ge=0, description="step at which the power law begins; 0: the end of the warmup, at least 1")
    decay_fraction: float = Field(0.1, ge=0, le=1, description=DECAY_FRACTION)
    final_fraction: float = Field(0.0, ge=0, le=1, description="learning rate at the end of the decay, relative to the power law's")
    shape: Shape = Field("linear", description=DECAY_SHAPE)


class Piece(PartConfig):
    """Part of a sequence. Neither steps nor fraction: what the others leave."""

    schedule: Annotated[Part, PartKey("schedules")] = Field(default_part("constant"), description="schedule of the piece, as if it were a whole run")
    steps: int = Field(0, ge=0, description="length in steps")
    fraction: float = Field(0.0, ge=0, le=1, description="length as a fraction of the run; steps takes precedence")
    scale: float = Field(1.0, gt=0, le=1, description="factor on the learning rate of this piece")

    def check_run(self, max_steps: int) -> list[str]:
        return self.schedule.config.check_run(max_steps)


class SequentialConfig(PartConfig):
    pieces: list[Piece] = Field(
        [{"schedule": {"name": "constant", "warmup_fraction": 0.1}, "fraction": 0.5}, {"schedule": {"name": "cosine"}}],  # type: ignore[list-item]
        min_length=1,
        description="schedules, one after the other",
    )

    @model_validator(mode="after")
    def _fits(self) -> SequentialConfig:
        if sum(p.fraction for p in self.pieces if not p.steps) > 1 + 1e-9:
            raise ValueError("pieces: their fractions add up to more than 1")
        if sum(not (p.steps or p.fraction) for p in self.pieces) > 1:
            raise ValueError("pieces: only one may go without steps and fraction")
        return self

    def lengths(self, total_steps: int) -> list[int]:
        """Steps of each piece; cut off at `total_steps`, and the last fills what rounding leaves."""
        lengths, share = [], 0.0
        for piece in self.pieces:
            before, share = share, share + (0.0 if piece.steps else piece.fraction)
            lengths.append(piece.steps or round(share * total_steps) - round(before * total_steps))
        free = [i for i, p in enumerate(self.pieces) if not (p.steps or p.fraction)]
        lengths[free[0] if free else -1] += max(0, total_steps - sum(lengths))
        return lengths

    def check_run(self, max_steps: int) -> list[str]:
        lengths = self.lengths(max_steps)
        problems = [f"pieces.{i}.{text}" for i, (p, n) in enumerate(zip(self.pieces, lengths, strict=True)) for text in p.check_run(n)]
        if sum(lengths) > max_steps:
            problems.append(f"pieces: they take {plural(sum(lengths), 'step')}, more than max_steps {max_steps}")
        return problems


_FACTORIES = f"{__name__}.schedules"

PARTS = (
    feeb.ScheduleSpec("constant", ConstantConfig, build=f"{_FACTORIES}:constant", summary="Constant learning rate with warmup.", equation="f = 1"),
    feeb.ScheduleSpec(
        "linear",
        DecayConfig,
        build=f"{_FACTORIES}:linear",
        summary="Linear decay with warmup.",
        equation="f = φ + (1 − φ)(1 − p),   φ = final_fraction",
    ),
    feeb.ScheduleSpec(
        "cosine",
        DecayConfig,
        build=f"{_FACTORIES}:cosine",
        summary="Cosine decay with warmup.",
        reference="arXiv:1608.03983",
        equation="f = φ + (1 − φ)(1 + cos(π p)) / 2",
    ),
    feeb.ScheduleSpec(
        "wsd",
        WsdConfig,
        build=f"{_FACTORIES}:wsd",
        summary="WSD: warmup, stable, decay (trapezoidal).",
        reference="arXiv:2404.06395",
        equation="f = 1;   in the last decay_fraction of the run φ + (1 − φ) shape(p), linear: shape(p) = 1 − p",
    ),
    feeb.ScheduleSpec(
        "wsd_s",
        WsdSConfig,
        build=f"{_FACTORIES}:wsd_s",
        summary="Stable phase with several decays, each followed by the peak learning rate again.",
        reference="arXiv:2410.05192",
        since="1.1",
        equation="f = 1;   before each of `ends`, in decay_fraction of the steps up to it, 1 / (p/φ + 1 − p), then 1 again",
    ),
    feeb.ScheduleSpec(
        "inverse_sqrt",
        InverseSqrtConfig,
        build=f"{_FACTORIES}:inverse_sqrt",
        summary="Inverse square root decay with warmup.",
        reference="arXiv:1706.03762",
        since="1.1",
        equation="f = √(τ / (τ + n − warmup)),   τ = timescale, by default the warmup's length",
    ),
    feeb.ScheduleSpec(
        "one_minus_sqrt",
        DecayConfig,
        build=f"{_FACTORIES}:one_minus_sqrt",
        summary="1 - sqrt decay with warmup.",
        reference="arXiv:2405.18392",
        since="1.1",
        equation="f = φ + (1 − φ)(1 − √p)",
    ),
    feeb.ScheduleSpec(
        "exponential",
        ExponentialConfig,
        build=f"{_FACTORIES}:exponential",
        summary="Exponential decay with warmup.",
        since="1.1",
        equation="f = φ^p",
    ),
    feeb.ScheduleSpec(
        "power",
        PowerConfig,
        build=f"{_FACTORIES}:power",
        summary="Power law of the step, independent of the run's length, then a decay.",
        reference="arXiv:2408.13359",
        since="1.1",
        equation="f = max(n / onset, 1)^−exponent;   in the last decay_fraction times φ + (1 − φ) shape(p)",
    ),
    feeb.ScheduleSpec(
        "sequential",
        SequentialConfig,
        build=f"{_FACTORIES}:sequential",
        summary="Several schedules in sequence.",
        since="1.1",
        equation="f(n) = scale_i f_i(n − begin_i) in piece i",
    ),
)
