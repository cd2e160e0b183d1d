"""Which steps are anomalous, and what follows: stop, skip, or roll back to an earlier state and continue with later batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from feebcore.errors import Diverged, plural
from feebcore.train.config import TrainSection
from feebcore.train.state import TrainState

FEWEST = 20
"""Losses that must be known before one can stand out."""


class Rollback(Exception):
    """The run is to continue from an earlier state."""


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
    """The policy of a run. It keeps nothing itself: what it counts is in the TrainState, and so in checkpoints."""

    def __init__(self, section: TrainSection, log: Callable[[str], None]) -> None:
        self.section, self.log = section, log
        policies = (section.on_nonfinite, section.on_loss_spike if section.spike_factor else "stop")
        self.judges_at_once = any(policy != "stop" for policy in policies)
        """Whether an update may be left out, so that its step is to be judged before it; a run that ends may hear of it some steps late."""

    def skips(self, step: int, loss: float, norm: float, state: TrainState) -> bool:
        """Whether the update of a step (counted from 1) with this loss and gradient norm is left out.

        Raises Diverged when the run ends, Rollback when it goes back.
        """
        section = self.section
        if not (math.isfinite(loss) and math.isfinite(norm)):
            key, policy, reason = "on_nonfinite", section.on_nonfinite, ""
        elif reason := spike(loss, state.recent, section.spike_factor):
            key, policy = "on_loss_spike", section.on_loss_spike
        else:
            state.anomalies_in_row = 0
            state.recent.append(loss)
            return False
        state.anomalies_in_row += 1
        state.anomalous_steps.append(step)
        what = f"step {step}: loss {loss:g}, gradient norm {norm:g}{reason}"
        if policy == "stop":
            raise Diverged(f"{what}; lower the optimizer's learning rate or grad_clip, lengthen the schedule's warmup, or set {key}: skip")
        advice = "lower the optimizer's learning rate or lengthen the warmup"
        if policy == "rollback":
            if len(state.rollbacks) >= section.max_recoveries:
                raise Diverged(f"{what}, after {len(state.rollbacks)} rollbacks (max_recoveries); {advice}")
            raise Rollback(what)
        if state.anomalies_in_row >= section.max_recoveries:
            raise Diverged(f"{what}: {plural(state.anomalies_in_row, 'skipped step')} in a row (max_recoveries); {advice}")
        self.log(f"{what}; the step is skipped")
        return True
