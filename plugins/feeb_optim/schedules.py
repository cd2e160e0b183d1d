"""Rate multipliers as pure functions of the step: `multiplier(step)` for step 0 .. total_steps - 1.

A warmup of w steps gives (step + 1) / w. A decay runs over the remaining steps and would reach its final fraction at
`total_steps`, one past the last step, so that no step is spent at a rate of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from feeb_optim import ConstantConfig, DecayConfig, WsdConfig

Schedule = Callable[[int], float]

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda part: 1 - part,
    "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    "one_minus_sqrt": lambda part: 1 - math.sqrt(part),
}


def build_constant(config: ConstantConfig, total_steps: int) -> Schedule:
    return _schedule(config.warmup(total_steps), total_steps, total_steps, "linear", 1.0)


def build_linear(config: DecayConfig, total_steps: int) -> Schedule:
    warmup = config.warmup(total_steps)
    return _schedule(warmup, warmup, total_steps, "linear", config.final_fraction)


def build_cosine(config: DecayConfig, total_steps: int) -> Schedule:
    warmup = config.warmup(total_steps)
    return _schedule(warmup, warmup, total_steps, "cosine", config.final_fraction)


def build_wsd(config: WsdConfig, total_steps: int) -> Schedule:
    warmup = config.warmup(total_steps)
    start = max(warmup, total_steps - round(config.decay_fraction * total_steps))
    return _schedule(warmup, start, total_steps, config.shape, config.final_fraction)


def _schedule(warmup: int, start: int, total: int, shape: str, final: float) -> Schedule:
    """Rises until `warmup`, stays at 1 until `start`, falls towards `final` at `total`."""

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step < start:
            return 1.0
        part = min(1.0, (step - start) / max(1, total - start))
        return final + (1 - final) * SHAPES[shape](part)

    return multiplier
