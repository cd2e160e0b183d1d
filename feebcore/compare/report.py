"""What a comparison found, as plain JSON, as text and as headline metrics. Every number comes from runs in the ledger."""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Mapping, Sequence
from typing import Any

from feebcore.compare import statistics
from feebcore.compare.measured import measured
from feebcore.compare.plan import Candidate, LRChoice, Settings, order_differences
from feebcore.compare.statistics import CurvePoint, Difference
from feebcore.compare.verdict import judge, p_text
from feebcore.errors import StageFailed, plural
from feebcore.files import finite
from feebcore.study.runs import RunRecord, missing

ASSUMPTIONS = (
    "Interval and p are those of the paired t test: differences between seeds are assumed to be independent and roughly normal.",
    "They hold for other seeds of these recipes on this data at this budget, not for other data, sizes or budgets.",
)
FEW_PAIRS = 4
"""Pairs below which a reader is warned."""

UNEVEN = {"tokens": 0.01, "flops": 0.01, "time": 0.05}
"""Share by which a candidate's budget may be off before it is said."""


def make(
    candidates: Sequence[Candidate],
    settings: Settings,
    costs: Mapping[str, Mapping[str, Any]],
    steps: Mapping[str, int],
    choices: Mapping[str, LRChoice],
    rows: Sequence[RunRecord],
    every_row: Sequence[RunRecord],
) -> dict[str, Any]:
    """The whole result. rows: the main runs and the curve's; every_row: these and those of the learning-rate search, in the order run."""
    base = candidates[0]
    losses = {candidate.name: _losses(candidate, rows) for candidate in candidates}
    failed = {row.name for row in rows if row.status == "failed"}
    pairs = [i for i in range(settings.seeds) if not any(f"{c.name}-seed{c.seeds[i]}" in failed for c in candidates)]
    if len(pairs) < 2:
        raise StageFailed(
            f"{plural(len(failed), 'run')} failed, which leaves {plural(len(pairs), 'pair')} of seeds: {'; '.join(missing(rows))}; the same command tries again"
        )
    paired = {name: [values[i] for i in pairs] for name, values in losses.items()}
    differences = statistics.differences_of(paired[base.name], {candidate.name: paired[candidate.name] for candidate in candidates[1:]})
    summaries = {
        candidate.name: _candidate(candidate, losses[candidate.name], rows, costs[candidate.name], steps[candidate.name], choices[candidate.name])
        for candidate in candidates
    }
    curve, points = _curve(base, losses[base.name], rows, summaries[base.name])
    verdicts = [_variant(d, base.name, settings, points, summaries) for d in differences]
    notes = [
        measured((c.section for c in candidates), (row.result.get("val_share") for row in rows if row.status == "done")),
        *(_compute(v, base.name) for v in verdicts if settings.curve),
        *order_differences(candidates),
        *_uneven(summaries, base.name, settings),
        *(choice.note for choice in choices.values() if choice.note),
        *_doubts(differences),
    ]
    if settings.budget == "time":
        notes.append(
            "Matched time is based on step times measured on this machine at the start of the comparison; another machine gives other numbers of steps."
        )
    return finite(
        {
            "baseline": base.name,
            "budget": settings.budget,
            "effect": settings.effect,
            "alpha": statistics.ALPHA,
            "seeds": settings.seeds,
            "verdict": [v["sentence"] for v in verdicts],
            "variants": verdicts,
            "recipes": list(summaries.values()),
            "curve": curve,
            "notes": notes,
            "assumptions": list(ASSUMPTIONS),
            "runs": [_run(row) for row in every_row],
        }
    )


def headline(result: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics of the manifest: the verdict, and each difference with its interval."""
    differences = {v["name"]: {"value": v["difference"], "low": v["low"], "high": v["high"]} for v in result["variants"]}
    kinds = {v["name"]: v["kind"] for v in result["variants"]}
    return {"verdict": " ".join(result["verdict"]), "kinds": kinds, "difference": differences, "runs": len(result["runs"])}


def numbers_of(candidate: Mapping[str, Any], variant: Mapping[str, Any] | None) -> list[str]:
    """For a row of a table: bits per byte, difference, interval, p and compute multiplier; variant None: of the baseline."""
    measured = "" if candidate["mean"] is None else f"{candidate['mean']:.4f}" + ("" if candidate["sd"] is None else f" ± {candidate['sd']:.4f}")
    if variant is None:
        return [measured, "baseline", "", "", ""]
    if variant["difference"] is None:
        return [measured, "cannot tell", "", "", "cannot tell"]
    interval = f"{variant['low']:+.4f} to {variant['high']:+.4f}"
    return [measured, f"{variant['difference']:+.4f}", interval, p_text(variant["p"]), _multiplier(variant["multiplier"]["compute"])]


def _multiplier(ratio: Mapping[str, float | None]) -> str:
    """1.4 (1.2 to 1.7); an end that lies outside the baseline's curve is a question mark."""
    if ratio["value"] is None:
        return "cannot tell"
    ends = " to ".join("?" if ratio[end] is None else f"{ratio[end]:.2f}" for end in ("low", "high"))
    return f"{ratio['value']:.2f} ({ends})"


def text(result: Mapping[str, Any]) -> str:
    """verdict.txt: a sentence a variant, then what a reader must know with it."""
    return "\n".join([*result["verdict"], *([""] if result["notes"] else []), *result["notes"], "", *result["assumptions"]]) + "\n"


def _losses(candidate: Candidate, rows: Sequence[RunRecord]) -> list[float | None]:
    """Bits per byte in the order of the seeds; None: diverged."""
    mine = {row.overrides["seed"]: row for row in rows if row.overrides["recipe"] == candidate.name and row.overrides["role"] == "run"}
    return [float(mine[seed].result["bits_per_byte"]) if mine[seed].status == "done" else None for seed in candidate.seeds]


def _candidate(
    candidate: Candidate, losses: Sequence[float | None], rows: Sequence[RunRecord], cost: Mapping[str, Any], steps: int, lr: LRChoice
) -> dict[str, Any]:
    mine = [row for row in rows if row.overrides["recipe"] == candidate.name and row.overrides["role"] == "run"]
    done = [row.result for row in mine if row.status == "done"]
    finished = [loss for loss in losses if loss is not None]
    speeds = [r["tokens_per_second"] for r in done if r.get("tokens_per_second")]
    tokens = steps * cost["tokens"]
    speed = plain.median(speeds) if speeds else None
    return {
        "name": candidate.name,
        "recipe": str(candidate.recipe.path),
        "seeds": list(candidate.seeds),
        "steps": steps,
        "tokens": tokens,
        "flops": steps * cost["flops"],
        "parameters": done[0]["parameters"] if done else None,
        "bits_per_byte": list(losses),
        "mean": plain.fmean(finished) if finished else None,
        "sd": plain.stdev(finished) if len(finished) > 1 else None,
        "diverged": [{"seed": row.overrides["seed"], "why": row.reason} for row in mine if row.status == "diverged"],
        "bad_steps": sum(r.get("bad_steps", 0) for r in done),
        "tokens_per_second": speed,
        "training_seconds": tokens / speed if speed else None,
        "memory_bytes": cost.get("memory_bytes"),
        "step_seconds_at_start": cost.get("step_seconds"),
        "lr": {
            "factor": lr.factor,
            "best": lr.best,
            "at_edge": lr.at_edge,
            "tried": [{"factor": factor, "bits_per_byte": loss} for factor, loss in sorted(lr.tried.items())],
        },
    }


def _curve(
    base: Candidate, losses: Sequence[float | None], rows: Sequence[RunRecord], summary: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], list[CurvePoint]]:
    """The baseline's loss at other budgets, each trained with its whole schedule under the first seed, next to the same seed at 1.

    The error of a gain is that of two runs under different seeds: pairs scatter less, so this errs on the safe side.
    """
    points, plotted = [], []
    own = losses[0]
    error = math.sqrt(2.0) * summary["sd"] if summary["sd"] is not None else math.nan
    for row in rows:
        if row.overrides["role"] != "curve":
            continue
        factor = row.overrides["max_steps"] / summary["steps"]
        loss = float(row.result["bits_per_byte"]) if row.status == "done" else None
        plotted.append({"factor": factor, "flops": factor * summary["flops"], "bits_per_byte": loss, "why": row.reason})
        if loss is not None and own is not None and math.isfinite(error):
            points.append(CurvePoint(factor, own - loss, error))
    return plotted, points


def _variant(difference: Difference, base: str, settings: Settings, points: Sequence[CurvePoint], summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    verdict = judge(difference, base, settings.effect)
    pairs = difference.paired
    times = statistics.multiplier(points, pairs)
    by_flops = summaries[base]["flops"] / summaries[difference.name]["flops"]
    speeds = summaries[difference.name]["tokens_per_second"], summaries[base]["tokens_per_second"]
    memory = summaries[difference.name]["memory_bytes"], summaries[base]["memory_bytes"]
    numbers: dict[str, Any] = dict.fromkeys(("difference", "low", "high", "confidence", "sd", "p_alone", "p_sign_flip", "smallest_effect"))
    if pairs is not None:
        numbers = {
            "difference": pairs.mean,
            "low": pairs.low,
            "high": pairs.high,
            "confidence": 1 - pairs.alpha,
            "sd": pairs.sd,
            "p_alone": pairs.p,
            "p_sign_flip": pairs.p_flips,
            "smallest_effect": statistics.smallest_effect(pairs.sd, pairs.num_pairs, pairs.alpha),
        }
    return {
        "name": difference.name,
        "kind": verdict.kind,
        "sentence": verdict.sentence[0].upper() + verdict.sentence[1:] if verdict.kind in ("no difference", "cannot tell") else verdict.sentence,
        **numbers,
        "low_95_alone": difference.low_95,
        "high_95_alone": difference.high_95,
        "num_pairs": pairs.num_pairs if pairs else 0,
        "p": difference.p,
        "diverged": difference.diverged,
        "baseline_diverged": difference.baseline_diverged,
        "seeds_needed": verdict.seeds_needed,
        "seeds_at_most": verdict.seeds_at_most,
        "multiplier": {
            "budget": {"value": times.value, "low": times.low, "high": times.high},
            "compute": {key: None if value is None else value * by_flops for key, value in (("value", times.value), ("low", times.low), ("high", times.high))},
            "why": times.why,
        },
        "speed_ratio": speeds[0] / speeds[1] if all(speeds) else None,
        "memory_ratio": memory[0] / memory[1] if all(memory) else None,
    }


def _compute(variant: Mapping[str, Any], base: str) -> str:
    """The compute multiplier in words."""
    times, why = variant["multiplier"]["compute"], variant["multiplier"]["why"]
    if times["value"] is None:
        return f"How much more compute {base} needs for the loss of {variant['name']}: cannot tell; {why}."
    low, high = times["low"], times["high"]
    ends = [] if low is None else [f"at least {low:.2f}"] if high is None else [f"{low:.2f} to {high:.2f}"]
    ends = ends or ([f"at most {high:.2f}"] if high is not None else ["both ends lie outside its curve"])
    return f"For the loss of {variant['name']}, {base} needs {times['value']:.2f} times the training FLOPs of {variant['name']} ({ends[0]})."


def _uneven(summaries: Mapping[str, Mapping[str, Any]], base: str, settings: Settings) -> list[str]:
    """A sentence for each candidate whose budget came out otherwise than the baseline's."""
    key = {"tokens": "tokens", "flops": "flops", "time": "training_seconds"}[settings.budget]
    words = {"tokens": "tokens", "flops": "training FLOPs", "time": "training time"}[settings.budget]
    notes = []
    for candidate in summaries.values():
        ours, its = summaries[base][key], candidate[key]
        if ours and its and abs(its / ours - 1) > UNEVEN[settings.budget]:
            notes.append(f"{candidate['name']} had {100 * (its / ours - 1):+.1f}% {words} relative to {base}: the budgets are not exactly matched.")
    return notes


def _doubts(differences: Sequence[Difference]) -> list[str]:
    notes = []
    for d in differences:
        if d.paired is not None and d.paired.num_pairs < FEW_PAIRS:
            notes.append(
                f"{d.name}: {d.paired.num_pairs} pairs give an unreliable variance estimate, so the interval depends on the normality assumption; use 5 seeds or more."
            )
        if d.paired is not None and d.paired.p_flips is not None and (d.paired.p <= d.paired.alpha) != (d.paired.p_flips <= d.paired.alpha):
            notes.append(
                f"{d.name}: the sign-flip test, which does not assume normality, gives p {d.paired.p_flips:.2g} where the t test gives {d.paired.p:.2g}."
            )
    return notes


def _run(row: RunRecord) -> dict[str, Any]:
    numbers = {key: row.result.get(key) for key in ("bits_per_byte", "tokens", "flops", "seconds", "tokens_per_second", "path")}
    return {"name": row.name, **row.overrides, "status": row.status, "why": row.reason, **numbers}
