"""Learning-rate multipliers as pure functions of the step: `multiplier(step)` for step 0 .. total_steps - 1.

A warmup of w steps gives (step + 1) / w. A decay runs over the remaining steps and would reach its final fraction at
`total_steps`, one past the last step, so that no step is spent at a learning rate of zero. Below, `part` is the
share of a decay that is over, from 0 to 1.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable

from feeb_optim.schedules import ConstantConfig, DecayConfig, ExponentialConfig, InverseSqrtConfig, PowerConfig, SequentialConfig, WsdConfig, WsdSConfig
from feebcore.protocols import BuildContext

Schedule = Callable[[int], float]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    "one_minus_sqrt": lambda part: 1 - math.sqrt(part),
}


def constant(config: ConstantConfig, context: BuildContext) -> Schedule:
    return after_warmup(config.warmup(context.total_steps), lambda step: 1.0)


def linear(config: DecayConfig, context: BuildContext) -> Schedule:
    return _decay(config, context.total_steps, "linear")


def cosine(config: DecayConfig, context: BuildContext) -> Schedule:
    return _decay(config, context.total_steps, "cosine")


def one_minus_sqrt(config: DecayConfig, context: BuildContext) -> Schedule:
    """1 - sqrt(part): the best of the cooldowns that arXiv:2405.18392 compared (Figure 5)."""
    return _decay(config, context.total_steps, "one_minus_sqrt")


def wsd(config: WsdConfig, context: BuildContext) -> Schedule:
    total_steps = context.total_steps
    warmup = config.warmup(total_steps)
    start = max(warmup, total_steps - round(config.decay_fraction * total_steps))
    return after_warmup(warmup, lambda step: decayed(share(step, start, total_steps), config.shape, config.final_fraction))


def wsd_s(config: WsdSConfig, context: BuildContext) -> Schedule:
    """The peak learning rate again right after each decay (arXiv:2410.05192, Section 4), so that one run has a checkpoint for each end."""
    total_steps = context.total_steps
    warmup = config.warmup(total_steps)
    ends = [round(end * total_steps) for end in config.ends]
    begins = [max(warmup, before, end - round(config.decay_fraction * end)) for before, end in itertools.pairwise([0, *ends])]

    def multiplier(step: int) -> float:
        i = min(bisect.bisect_right(ends, step), len(ends) - 1)
        return decayed(share(step, begins[i], ends[i]), config.shape, config.final_fraction)

    return after_warmup(warmup, multiplier)


def inverse_sqrt(config: InverseSqrtConfig, context: BuildContext) -> Schedule:
    """sqrt(t / (t + step - warmup)) with timescale t; with t = warmup it is sqrt(warmup / step) (arXiv:1706.03762, Section 5.3)."""
    warmup = config.warmup(context.total_steps)
    timescale = config.timescale or max(1, warmup)
    return after_warmup(warmup, lambda step: math.sqrt(timescale / (timescale + step - warmup)))


def exponential(config: ExponentialConfig, context: BuildContext) -> Schedule:
    """final_fraction ** part."""
    total_steps = context.total_steps
    warmup = config.warmup(total_steps)
    return after_warmup(warmup, lambda step: config.final_fraction ** share(step, warmup, total_steps))


def power(config: PowerConfig, context: BuildContext) -> Schedule:
    """min(1, (step / onset) ** -exponent), at any length of the run, times a decay at its end (arXiv:2408.13359, Section 4)."""
    total_steps = context.total_steps
    warmup = config.warmup(total_steps)
    onset = config.onset_steps or max(1, warmup)
    start = max(warmup, total_steps - round(config.decay_fraction * total_steps))

    def multiplier(step: int) -> float:
        fallen = (max(step, onset) / onset) ** -config.exponent
        return fallen * decayed(share(step, start, total_steps), config.shape, config.final_fraction)

    return after_warmup(warmup, multiplier)


def sequential(config: SequentialConfig, context: BuildContext) -> Schedule:
    """Each piece counts its steps from its own beginning; past the end, the last one continues."""
    lengths = config.lengths(context.total_steps)
    schedules = [(p.schedule.build(context, total_steps=n), p.scale) for p, n in zip(config.pieces, lengths, strict=True)]
    begins = [0, *itertools.accumulate(lengths)][:-1]

    def multiplier(step: int) -> float:
        i = bisect.bisect_right(begins, step) - 1  # of pieces without steps, the one after them
        schedule, scale = schedules[i]
        return scale * schedule(step - begins[i])

    return multiplier


def after_warmup(warmup: int, schedule: Schedule) -> Schedule:
    return lambda step: (step + 1) / warmup if step < warmup else schedule(step)


def share(step: int, start: int, end: int) -> float:
    """How much of start .. end is over at `step`, 0 to 1."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def decayed(part: float, shape: str, final: float) -> float:
    """From 1 at part 0 to `final` at part 1."""
    if shape == "inverse":
        return 1 / (part / final + 1 - part)
    return final + (1 - final) * SHAPES[shape](part)


def _decay(config: DecayConfig, total_steps: int, shape: str) -> Schedule:
    warmup = config.warmup(total_steps)
    return after_warmup(warmup, lambda step: decayed(share(step, warmup, total_steps), shape, config.final_fraction))
