"""Agrees, disagrees, cannot tell: what paired runs say of an expectation. Pure functions of numbers.

Each seed gives one value of `left - right`; the interval is the t interval over seeds at 95 %, for this finding alone. Numbers
are compared with variants as they are. A seed in which a variant that is named has no number (it diverged) is in no interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from feebcore.compare.statistics import Paired, paired
from feebcore.findings.claims import Expectation, Relation, Term, Trains, variants_of

Kind = Literal["agrees", "disagrees", "cannot tell"]
Value = Callable[[str, int, "int | None"], "float | None"]
"""(variant, seed, step or None for the last) -> its number; None: that run has none."""


@dataclass(frozen=True)
class Judgement:
    """why: one clause for the reader. found: of left - right; None where there is no interval. margin: of `=`, in the metric's unit."""

    kind: Kind
    why: str
    found: Paired | None = None
    margin: float | None = None
    values: tuple[float, ...] = ()
    lost: int = 0


def judge(expectation: Expectation, seeds: Sequence[int], value: Value, guessing: float) -> Judgement:
    """guessing: the held-out loss of an even guess, nats per token; `value` of metric 'val_loss' is asked for by `trains` alone."""
    if isinstance(expectation, Trains):
        return _trains(expectation, seeds, value, guessing)
    return _relation(expectation, seeds, value)


BETTER_THAN_GUESSING = 0.9
"""A run trains when its held-out loss is below this share of an even guess."""


def _trains(expectation: Trains, seeds: Sequence[int], value: Value, guessing: float) -> Judgement:
    lost, worst = [], 0.0
    for variant in expectation.variants:
        losses = [value(variant, seed, None) for seed in seeds]
        bad = sum(loss is None or not loss < BETTER_THAN_GUESSING * guessing for loss in losses)
        if bad:
            lost.append(f"{variant}: {bad} of {len(seeds)} runs diverged or learned nothing")
        worst = max([worst, *(loss for loss in losses if loss is not None)])
    if lost:
        return Judgement("disagrees", "; ".join(lost))
    return Judgement("agrees", f"every run ends below {worst:.2f} nats a token; an even guess has {guessing:.2f}")


def _relation(expectation: Relation, seeds: Sequence[int], value: Value) -> Judgement:
    pairs = [(_sum(expectation.left, seed, value), _sum(expectation.right, seed, value)) for seed in seeds]
    whole = [(left, right) for left, right in pairs if left is not None and right is not None]
    lost = len(pairs) - len(whole)
    if len(whole) < 2:
        names = ", ".join(variants_of(expectation))
        return Judgement("cannot tell", f"fewer than 2 seeds have numbers of all of {names}", lost=lost)
    differences = [left - right for left, right in whole]
    found = paired(differences)
    margin = None
    if expectation.sign == "=":
        scale = abs(sum(right for _, right in whole) / len(whole)) / 100 if expectation.in_percent else 1.0
        margin = expectation.within * scale
        kind: Kind = "agrees" if max(-found.low, found.high) <= margin else "disagrees" if found.low > margin or found.high < -margin else "cannot tell"
        why = {"agrees": "the interval lies within the margin", "disagrees": "the interval lies outside the margin"}.get(
            kind, "the interval crosses the margin"
        )
    else:
        wanted = -1.0 if expectation.sign == "<" else 1.0
        ends = sorted((wanted * found.low, wanted * found.high))
        clear = found.p <= found.alpha
        kind = "agrees" if clear and ends[0] > 0 else "disagrees" if clear and ends[1] < 0 else "cannot tell"
        why = {"agrees": "the interval excludes 0", "disagrees": "the interval lies on the other side of 0"}.get(kind, "the interval holds 0")
    if lost:
        why += f"; {lost} of {len(pairs)} seeds had a run without a number"
        if kind == "agrees":
            kind, why = "cannot tell", f"{why}, so what is left is a choice of runs"
    return Judgement(kind, why, found, margin, tuple(differences), lost)


def _sum(terms: Sequence[Term], seed: int, value: Value) -> float | None:
    total = 0.0
    for term in terms:
        number = 1.0 if not term.variant else value(term.variant, seed, term.step)
        if number is None or not math.isfinite(number):
            return None
        total += term.factor * number
    return total
