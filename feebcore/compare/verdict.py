"""One sentence on a variant, which claims no more than its interval allows.

better, worse: the interval excludes 0. no difference: the interval lies within plus and minus the effect that was asked
for; the sentence names the largest difference that it still holds. cannot tell: everything else. A run that diverged is
no number, so its pair is in no interval, but it counts: a side that diverges more often is never called better, and where
any run diverged nothing is called the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from feebcore.compare import statistics
from feebcore.compare.statistics import Difference

Kind = Literal["better", "worse", "no difference", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """kind: machine-readable. sentence: for people. seeds_needed: pairs that would find `effect` with 80 % power, from the
    scatter seen; seeds_at_most: from the largest scatter that these few seeds leave likely (80 %)."""

    kind: Kind
    sentence: str
    seeds_needed: int | None = None
    seeds_at_most: int | None = None


def judge(difference: Difference, baseline: str, effect: float, alpha: float = statistics.ALPHA, power: float = statistics.POWER) -> Verdict:
    """The verdict on one variant. effect: the smallest difference in bits per byte that matters to the reader."""
    name, paired = difference.name, difference.paired
    lost = _lost(difference, baseline)
    if paired is None:
        return Verdict("cannot tell", f"cannot tell whether {name} differs from {baseline}: fewer than 2 pairs of runs finished{lost}.")
    needed = at_most = None
    if paired.sd > 0:
        needed = statistics.seeds_needed(effect, paired.sd, paired.alpha, power)
        at_most = statistics.seeds_needed(effect, statistics.sd_at_most(paired.sd, paired.num_pairs), paired.alpha, power)
    against_variant, against_baseline = difference.diverged > difference.baseline_diverged, difference.baseline_diverged > difference.diverged
    evidence = f"{100 * (1 - paired.alpha):.3g}% interval {_interval(paired.low, paired.high)} bits per byte, {paired.num_pairs} paired seeds, p {p_text(difference.p)}"
    largest = max(abs(paired.low), abs(paired.high))
    kind: Kind
    if paired.p <= paired.alpha and paired.low * paired.high > 0:
        kind = "better" if paired.mean < 0 else "worse"
        if (kind == "better" and against_variant) or (kind == "worse" and against_baseline):
            loser = name if kind == "better" else baseline
            sentence = f"cannot tell: where both finished, {name} is {abs(paired.mean):.4f} {_lower(paired.mean)} than {baseline} ({evidence}), but {loser} diverges{lost}."
            return Verdict("cannot tell", sentence, needed, at_most)
        small = f", less than the smallest effect of interest, {effect:g}" if largest < effect else ""
        return Verdict(
            kind, f"{name} is {kind} than {baseline}: {abs(paired.mean):.4f} bits per byte {_lower(paired.mean)}{small} ({evidence}){lost}.", needed, at_most
        )
    if largest <= effect and not (difference.diverged or difference.baseline_diverged):
        same = "every run gave the same number" if paired.sd == 0 and paired.mean == 0 else evidence
        return Verdict(
            "no difference", f"no difference larger than {_up(largest)} bits per byte between {name} and {baseline} ({same}){lost}.", needed, at_most
        )
    advice = _advice(effect, paired.num_pairs, needed, at_most) if needed is not None else ""
    return Verdict("cannot tell", f"cannot tell whether {name} differs from {baseline} ({evidence}){lost}{advice}.", needed, at_most)


def _lost(difference: Difference, baseline: str) -> str:
    """What is said of diverged runs; empty when there are none."""
    sides = [(difference.name, difference.diverged), (baseline, difference.baseline_diverged)]
    counts = [f"{count} of {difference.num_seeds} runs of {name} diverged" for name, count in sides if count]
    return f"; {' and '.join(counts)}, and those pairs are excluded from the interval" if counts else ""


def _advice(effect: float, have: int, needed: int, at_most: int | None) -> str:
    """How many seeds to run instead."""
    if needed <= have and (at_most is None or at_most <= have):
        return f"; {have} seeds detect {effect:g} with 80% power, so the difference is smaller, or this is one of the other 20%"
    few = f"~{max(needed, have + 1)} seeds"
    more = f" (at most ~{at_most})" if at_most is not None and at_most > max(needed, have + 1) else ""
    return f"; {few}{more} for 80% power at a difference of {effect:g}"


def _lower(mean: float) -> str:
    return "lower" if mean < 0 else "higher"


def _interval(low: float, high: float) -> str:
    return f"{low:+.4f} to {high:+.4f}"


def _up(value: float) -> str:
    """Rounded up to four decimals, so that the sentence holds."""
    return f"{math.ceil(value * 1e4 - 1e-9) / 1e4:.4f}"


def p_text(p: float) -> str:
    return "below 0.0001" if p < 1e-4 else f"{p:.2g}"
