"""Agrees, disagrees, cannot tell: what paired runs say of an expectation. Pure functions of numbers.

Each seed gives one value of `left - right`; the interval is the t interval over seeds at 95 %, for this claim alone. Numbers
are compared with variants as they are. Where a run that is named diverged, nothing is told of a relation: what is left is a choice of runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from feebcore.claim import Relation, Term, Trains, variants_of
from feebcore.compare.statistics import Paired, paired

Kind = Literal["agrees", "disagrees", "cannot tell"]
Value = Callable[[str, int, "int | None"], "float | None"]
"""(variant, seed, step or None for the last) -> its number; None: that run has none."""


@dataclass(frozen=True)
class Judgment:
    """why: one clause for the reader. difference: of left - right; None where there is no interval. margin: of `=`, in the metric's unit."""

    kind: Kind
    why: str
    difference: Paired | None = None
    margin: float | None = None
    values: tuple[float, ...] = ()
    lost: int = 0


def judge(expectation: Relation | Trains, seeds: Sequence[int], value: Value) -> Judgment:
    """value: of the claim's metric; for `trains` the validation loss as a fraction of that of a uniform guess over the vocabulary."""
    return _trains(expectation, seeds, value) if isinstance(expectation, Trains) else _relation(expectation, seeds, value)


BETTER_THAN_GUESSING = 0.9
"""A run trains when its validation loss is below this fraction of that of a uniform guess."""


def _trains(expectation: Trains, seeds: Sequence[int], value: Value) -> Judgment:
    lost, worst = [], 0.0
    for variant in expectation.variants:
        shares = [value(variant, seed, None) for seed in seeds]
        bad = sum(share is None or not share < BETTER_THAN_GUESSING for share in shares)
        if bad:
            lost.append(f"{variant}: {bad} of {len(seeds)} runs diverged or did not learn")
        worst = max([worst, *(share for share in shares if share is not None)])
    if lost:
        return Judgment("disagrees", "; ".join(lost))
    return Judgment("agrees", f"every run ends at {worst:.2f} of the loss of a uniform guess, or below")


def judge_reaches(target: float, ends: Sequence[tuple[str, int, float] | None]) -> Judgment:
    """ends: of every run what ended it (loss, flat, max_steps), its step and its training loss; None: it diverged. Agrees where every run
    came to the target, disagrees where every run is flat above it or diverged."""
    finished = [end for end in ends if end is not None]
    met = [step for _, step, loss in finished if loss <= target]
    flat = [loss for by, _, loss in finished if loss > target and by == "flat"]
    falling = [loss for by, _, loss in finished if loss > target and by != "flat"]
    lost = len(ends) - len(finished)
    said = [
        (len(met), f"met at step {_span(met, 'd')}" if met else ""),
        (len(flat), f"flat at loss {_span(flat, '.3f')}" if flat else ""),
        (len(falling), f"ended at loss {_span(falling, '.3f')}, not yet flat" if falling else ""),
        (lost, "diverged"),
    ]
    why = "; ".join(text if count == len(ends) else f"{count} of {len(ends)} runs {text}" for count, text in said if count)
    kind: Kind = "agrees" if len(met) == len(ends) else "cannot tell" if met or falling else "disagrees"
    return Judgment(kind, why, lost=lost)


def _span(values: Sequence[float], form: str) -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def _relation(expectation: Relation, seeds: Sequence[int], value: Value) -> Judgment:
    pairs = [(_sum(expectation.left, seed, value), _sum(expectation.right, seed, value)) for seed in seeds]
    whole = [(left, right) for left, right in pairs if left is not None and right is not None]
    if lost := len(pairs) - len(whole):
        return Judgment("cannot tell", f"{lost} of {len(pairs)} seeds had a run that diverged", lost=lost)
    if len(whole) < 2:
        return Judgment("cannot tell", "a single seed gives no variance estimate")
    differences = [left - right for left, right in whole]
    difference = paired(differences)
    if expectation.sign == "=":
        scale = abs(sum(right for _, right in whole) / len(whole)) / 100 if expectation.in_percent else 1.0
        return _same(difference, expectation.within * scale, tuple(differences))
    expected = -1.0 if expectation.sign == "<" else 1.0
    if difference.sd == 0.0:
        if len(variants_of(expectation)) > 1 or difference.mean == 0.0:
            return Judgment("cannot tell", "every seed gives the same difference, so there is no variance estimate", difference, None, tuple(differences))
        return Judgment("agrees" if expected * difference.mean > 0 else "disagrees", "every seed gives the same number", difference, None, tuple(differences))
    kind: Kind = "cannot tell" if difference.p > difference.alpha else "agrees" if expected * difference.mean > 0 else "disagrees"
    why = {"agrees": "the interval excludes 0", "disagrees": "the interval lies on the other side of 0"}.get(kind, "the interval contains 0")
    return Judgment(kind, why, difference, None, tuple(differences))


def _same(difference: Paired, margin: float, differences: tuple[float, ...]) -> Judgment:
    """Agrees when the whole interval lies within the margin, which is two one-sided tests at 2.5 % (Schuirmann 1987)."""
    if max(-difference.low, difference.high) <= margin:
        return Judgment("agrees", "the interval lies within the margin", difference, margin, differences)
    if difference.low > margin or difference.high < -margin:
        return Judgment("disagrees", "the interval lies outside the margin", difference, margin, differences)
    return Judgment("cannot tell", "the interval crosses the margin", difference, margin, differences)


def _sum(terms: Sequence[Term], seed: int, value: Value) -> float | None:
    total = 0.0
    for term in terms:
        number = 1.0 if not term.variant else value(term.variant, seed, term.step)
        if number is None or not math.isfinite(number):
            return None
        total += term.factor * number
    return total
