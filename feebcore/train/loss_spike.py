"""Which steps are bad, and what follows: stop, skip, or roll back to an earlier state and go on with later batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from feebcore.errors import Diverged
from feebcore.train.config import TrainSection

FEWEST = 20
"""Losses that must be known before one can stand out."""


class Rollback(Exception):
    """The run is to go on from an earlier state."""


def spike(loss: float, recent: deque[float], factor: float) -> str:
    """A sentence when `loss` is more than `factor` standard deviations above the mean of `recent`; factor 0: never."""
    if not factor or len(recent) < FEWEST:
        return ""
    mean = sum(recent) / len(recent)
    deviation = math.sqrt(sum((x - mean) ** 2 for x in recent) / (len(recent) - 1))
    if loss <= mean + factor * deviation:
        return ""
    return f", a spike: spike_factor {factor:g} allows {mean + factor * deviation:.4g} after a mean of {mean:.4g} over {len(recent)} steps"


class LossSpikeGuard:
    """The policy of a run. It keeps nothing itself: what it counts is in the run's progress, and so in its checkpoints."""

    def __init__(self, section: TrainSection, log: Callable[[str], None]) -> None:
        self.section, self.log = section, log

    def judge(self, step: int, loss: float, norm: float, recent: deque[float]) -> str:
        """What is bad about a step (counted from 1); empty when it is good."""
        unusual = "" if math.isfinite(loss) and math.isfinite(norm) else " "
        unusual = unusual or spike(loss, recent, self.section.spike_factor)
        return f"step {step}: loss {loss:g}, gradient norm {norm:g}{unusual.rstrip()}" if unusual else ""

    def handle(self, what: str, in_row: int, times_rolled: int) -> None:
        """Say what follows from `what` is bad about a step, the `in_row`-th in a row.

        Returns for a step that is skipped. Raises Diverged when the run ends, Rollback when it goes back.
        """
        section = self.section
        if section.on_bad_step == "stop":
            raise Diverged(f"{what}; lower the optimizer's rate or grad_clip, lengthen the schedule's warmup, or set on_bad_step: skip")
        advice = "lower the optimizer's rate or lengthen the warmup"
        if section.on_bad_step == "rollback":
            if times_rolled >= section.max_bad_steps:
                raise Diverged(f"{what}, after {times_rolled} times of going back (max_bad_steps); {advice}")
            raise Rollback(what)
        if in_row >= section.max_bad_steps:
            raise Diverged(f"{what}: {in_row} bad steps in a row (max_bad_steps); {advice}")
        self.log(f"{what}; the step is skipped")
