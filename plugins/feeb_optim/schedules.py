"""Rate multipliers as pure functions of the step: `multiplier(step)` for step 0 .. total_steps - 1.

A warmup of w steps gives (step + 1) / w. A decay runs over the remaining steps and would reach its final fraction at
`total_steps`, one past the last step, so that no step is spent at a rate of zero. Below, `part` is the share of a decay
that is over, from 0 to 1.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable

from feeb_optim.configs import ConstantConfig, DecayConfig, ExponentialConfig, InverseSqrtConfig, PowerConfig, SequentialConfig, WsdConfig, WsdSConfig

Schedule = Callable[[int], float]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    "one_minus_sqrt": lambda part: 1 - math.sqrt(part),
}


def build_constant(config: ConstantConfig, total_steps: int) -> Schedule:
    return after_warmup(config.warmup(total_steps), lambda step: 1.0)


def build_linear(config: DecayConfig, total_steps: int) -> Schedule:
    return _decay(config, total_steps, "linear")


def build_cosine(config: DecayConfig, total_steps: int) -> Schedule:
    return _decay(config, total_steps, "cosine")


def build_one_minus_sqrt(config: DecayConfig, total_steps: int) -> Schedule:
    """1 - sqrt(part): the best of the cooldowns that arXiv:2405.18392 compared (Figure 5)."""
    return _decay(config, total_steps, "one_minus_sqrt")


def build_wsd(config: WsdConfig, total_steps: int) -> Schedule:
    warmup = config.warmup(total_steps)
    start = max(warmup, total_steps - round(config.decay_fraction * total_steps))
    return after_warmup(warmup, lambda step: decayed(share(step, start, total_steps), config.shape, config.final_fraction))


def build_wsd_s(config: WsdSConfig, total_steps: int) -> Schedule:
    """The full rate again right after each decay (arXiv:2410.05192, Section 4), so that one run has a checkpoint for each end."""
    warmup = config.warmup(total_steps)
    ends = [round(end * total_steps) for end in config.ends]
    begins = [max(warmup, before, end - round(config.decay_fraction * end)) for before, end in itertools.pairwise([0, *ends])]

    def multiplier(step: int) -> float:
        i = min(bisect.bisect_right(ends, step), len(ends) - 1)
        return decayed(share(step, begins[i], ends[i]), config.shape, config.final_fraction)

    return after_warmup(warmup, multiplier)


def build_inverse_sqrt(config: InverseSqrtConfig, total_steps: int) -> Schedule:
    """sqrt(t / (t + step - warmup)) with timescale t; with t = warmup it is sqrt(warmup / step) (arXiv:1706.03762, Section 5.3)."""
    warmup = config.warmup(total_steps)
    timescale = config.timescale or max(1, warmup)
    return after_warmup(warmup, lambda step: math.sqrt(timescale / (timescale + step - warmup)))


def build_exponential(config: ExponentialConfig, total_steps: int) -> Schedule:
    """final_fraction ** part."""
    warmup = config.warmup(total_steps)
    return after_warmup(warmup, lambda step: config.final_fraction ** share(step, warmup, total_steps))


def build_power(config: PowerConfig, total_steps: int) -> Schedule:
    """min(1, (step / onset) ** -exponent), at any length of the run, times a decay at its end (arXiv:2408.13359, Section 4)."""
    warmup = config.warmup(total_steps)
    onset = config.onset_steps or max(1, warmup)
    start = max(warmup, total_steps - round(config.decay_fraction * total_steps))

    def multiplier(step: int) -> float:
        fallen = (max(step, onset) / onset) ** -config.exponent
        return fallen * decayed(share(step, start, total_steps), config.shape, config.final_fraction)

    return after_warmup(warmup, multiplier)


def build_sequential(config: SequentialConfig, total_steps: int) -> Schedule:
    """Each piece counts its steps from its own beginning; past the end, the last one goes on."""
    lengths = config.lengths(total_steps)
    pieces = [(p.schedule.build(n), p.scale) for p, n in zip(config.pieces, lengths, strict=True)]
    begins = [0, *itertools.accumulate(lengths)][:-1]

    def multiplier(step: int) -> float:
        i = bisect.bisect_right(begins, step) - 1  # of pieces without steps, the one after them
        schedule, scale = pieces[i]
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
