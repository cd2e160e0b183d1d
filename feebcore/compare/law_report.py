"""What a comparison of two laws found, as plain JSON, as text and as one sentence that claims no more than its interval allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from feebcore.errors import plural
from feebcore.files import finite
from feebcore.scaling.allocation import cost_of_a_token
from feebcore.scaling.minimize import Array
from feebcore.scaling.paired import EQUAL, CostOfToken, LawComparison, Pair, Place, compare_pairs
from feebcore.scaling.points import NotIdentifiable, ParameterCount, Point

ASSUMPTIONS = (
    "Each side is taken at its own best size and its own FLOPs per token; its learning rates are its own in every slot, times the same factors, and no small "
    "run shows that they are wrong at larger scale.",
    "Intervals are 95%, from the scatter of the paired ratios and the uncertainty of the baseline's law. They hold for these recipes on this text, as far as "
    "both laws keep their form up to the target.",
)
CURVE = 25  # places of the figure
HERE = 1.05  # a target up to so many times the dearest run is in the measured range


def make(
    names: Sequence[str],
    pairs: Sequence[Pair],
    points: Sequence[Mapping[str, Point]],
    parameter_count: ParameterCount,
    target: float,
    seed: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    """The whole result. names, points: of the two sides, the baseline first; target 0: at the dearest pair."""
    flops = target or max((pair.first.flops for pair in pairs), default=math.nan)
    comparison, refusal = None, ""
    try:
        costs = [_cost(own, parameter_count) for own in points]
        comparison = compare_pairs(pairs, parameter_count, flops, (costs[0], costs[1]), seed, CURVE)
    except NotIdentifiable as error:
        refusal = str(error)
    said = sentence(names[0], names[1], comparison, flops, refusal)
    law = [f"law of {names[0]}: {flag}" for flag in comparison.law_flags] if comparison else []
    return finite(
        {
            "baseline": names[0],
            "candidate": names[1],
            "kind": comparison.kind if comparison else "cannot tell",
            "verdict": [said],
            "target": flops,
            "parameter_count": parameter_count,
            "comparison": comparison.to_dict() if comparison else None,
            "refusal": refusal,
            "pairs": [_pair(pair, parameter_count) for pair in pairs],
            "notes": [*(comparison.flags if comparison else ()), *notes, *law],
            "assumptions": list(ASSUMPTIONS),
        }
    )


def _cost(points: Mapping[str, Point], parameter_count: ParameterCount) -> CostOfToken:
    if not points:
        raise NotIdentifiable("one side has no finished run")
    cost = cost_of_a_token(list(points.values()), parameter_count)

    def at(size: Array) -> Array:
        return np.array([cost(float(n)) for n in size])

    return at


def _pair(pair: Pair, parameter_count: ParameterCount) -> dict[str, Any]:
    both = (pair.first, pair.second)
    row: dict[str, Any] = {"name": pair.name, "heldout": pair.first.heldout, "ratio": math.log(pair.second.loss / pair.first.loss)}
    return row | {"N": [p.size(parameter_count) for p in both], **{key: [getattr(p, key) for p in both] for key in ("tokens", "flops", "loss")}}


def sentence(baseline: str, candidate: str, comparison: LawComparison | None, target: float, refusal: str = "") -> str:
    """The verdict for people."""
    question = f"cannot tell whether {candidate} differs from {baseline} at {target:.3g} FLOPs"
    if comparison is None:
        return _begin(f"{question}: {refusal}.")
    place, measured = comparison.target, comparison.measured
    where = f"at {target:.3g} FLOPs" + (f", {place.reach:.3g} times the dearest run" if place.reach > HERE else "")
    if not math.isfinite(place.low):
        return _begin(f"{question}: {plural(comparison.num_pairs, 'pair')} of runs give no interval.")
    if comparison.kind == "no difference":
        return _begin(f"no difference larger than {_up(place)}% of the loss between {candidate} and {baseline} {where}.")
    if comparison.kind == "cannot tell":
        why = comparison.doubts[0].partition(": ")[2] if comparison.doubts else f"{_difference(place)}, and less than {100 * EQUAL:g}% would be no difference"
        known = f"; in the measured range it is {measured.kind}: {_worth(measured)}" if measured.kind in ("better", "worse") else ""
        return _begin(f"{question}: {why}{known}.")
    small = f", less than {100 * EQUAL:g}%" if max(abs(place.low), abs(place.high)) < EQUAL else ""
    there = f"{comparison.kind} than {baseline} {where}: {_difference(place)}{small}, worth {_worth(place)}"
    if measured.kind in ("better", "worse") and measured.kind != comparison.kind:
        crossing = comparison.crossover
        at = f"; it crosses over at C = {crossing.flops:.2g} ({_end(crossing.low)} to {_end(crossing.high)}) FLOPs" if crossing else ""
        return f"{candidate} is {measured.kind} than {baseline} in the measured range ({_worth(measured)}) and {there}{at}."
    return f"{candidate} is {there}; in the measured range {_measured(measured)}."


def _measured(place: Place) -> str:
    return _worth(place) if place.kind in ("better", "worse") else f"the difference is not significant ({_difference(place)})"


def _difference(place: Place) -> str:
    nats, percent = place.second_loss - place.first_loss, 100 * math.expm1(place.difference)
    low, high = (100 * math.expm1(end) for end in (place.low, place.high))
    return f"{abs(nats):.3g} nats per token ({abs(percent):.2f}%) {'lower' if nats < 0 else 'higher'} loss (interval {low:+.2f} to {high:+.2f}%)"


def _worth(place: Place) -> str:
    return f"{place.multiplier:.2f} times the compute ({place.multiplier_low:.2f} to {place.multiplier_high:.2f})"


def _end(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "?"


def _up(place: Place) -> str:
    """The farther end in percent, rounded up, so that the sentence holds."""
    return f"{math.ceil(1e4 * max(abs(math.expm1(place.low)), abs(math.expm1(place.high)))) / 100:.2f}"


def _begin(text: str) -> str:
    return text[0].upper() + text[1:]


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of the manifest: the verdict, and the difference and the multiplier at the target with their intervals."""
    metrics: dict[str, Any] = {"verdict": " ".join(result["verdict"]), "kind": result["kind"], "target": result["target"], "pairs": len(result["pairs"])}
    if result["comparison"] is not None:
        place = result["comparison"]["target"]
        metrics["difference"] = {"value": place["difference"], "low": place["low"], "high": place["high"]}
        metrics["multiplier"] = {"value": place["multiplier"], "low": place["multiplier_low"], "high": place["multiplier_high"]}
    return metrics


def columns(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Of `rows`."""
    losses, sizes = ([f"{what}, {result[side]}" for side in ("baseline", "candidate")] for what in ("loss", "best N"))
    return "at FLOPs", *losses, "Δ", "95% CI", "compute multiplier", *sizes


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """For tables: the middle of the measured range, and the target."""
    comparison = result["comparison"]
    return [_cells(label, comparison[key]) for key, label in (("measured", "middle of the runs"), ("target", "target"))] if comparison else []


def _cells(label: str, place: Mapping[str, Any]) -> list[str]:
    def percent(key: str) -> str:
        return "" if place[key] is None else f"{100 * math.expm1(place[key]):+.2f}%"

    interval = f"{percent('low')} to {percent('high')}" if place["low"] is not None else ""
    ends = f" ({place['multiplier_low']:.2f} to {place['multiplier_high']:.2f})" if place["multiplier_low"] is not None else ""
    worth = "" if place["multiplier"] is None else f"{place['multiplier']:.2f}{ends}"
    losses = (f"{place[f'{side}_loss']:.4f}" for side in ("first", "second"))
    sizes = (f"{place[f'{side}_size']:.3g}" for side in ("first", "second"))
    return [f"{place['flops']:.3g} ({label})", *losses, percent("difference"), interval, worth, *sizes]


def text(result: Mapping[str, Any]) -> str:
    """verdict.txt: the sentence, then what a reader must know with it."""
    return "\n".join([*result["verdict"], *([""] if result["notes"] else []), *result["notes"], "", *result["assumptions"]]) + "\n"
