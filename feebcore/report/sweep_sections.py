"""What the page of a sweep says, from the files in its folder: numbers as plain JSON, tables as text. Nothing is fitted here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from feebcore.errors import DataError, plural
from feebcore.files import read_json, read_jsonl
from feebcore.report.facts import part_text
from feebcore.report.style import compact, with_unit

Sections = Mapping[str, Any]
NOT_RECORDED = "not recorded"
FAR_FROM_LEAST = math.log(1.6)
"""ln of a probe's best factor over the factor of its lowest loss, from which the parabola is not that of its runs."""
COUNTS = {"total": "total", "non_embedding": "non-embedding", "matmul": "matmul"}
COUNTED = {
    "total": "all parameters",
    "non_embedding": "parameters without the embedding and position tables",
    "matmul": "parameters that multiply activations: blocks and LM head",
}


@dataclass(frozen=True)
class Table:
    """Rows of text under columns. numeric: which columns are numbers."""

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    numeric: range = range(0)


def sections(folder: Path) -> dict[str, Any]:
    """Plain JSON, one key per section of the page. Raises DataError where the folder has no law.json."""
    if not (folder / "law.json").is_file():
        raise DataError(f"{folder} has no law.json: it is not a sweep, or not finished; `feeb sweep status` shows where it stands")
    document = read_json(folder / "law.json")
    recipe, environment = (read_json(folder / name) if (folder / name).is_file() else {} for name in ("recipe.json", "environment.json"))
    registered = {entry["name"]: entry for entry in read_json(folder / "predictions.json")} if (folder / "predictions.json").is_file() else {}
    runs = read_jsonl(folder / "runs.jsonl") if (folder / "runs.jsonl").is_file() else []
    section = next((value for value in recipe.values() if isinstance(value, Mapping) and {"planner", "train"} <= value.keys()), {})
    predictions = _predictions(document, registered)
    found: dict[str, Any] = {
        "name": recipe.get("name") or "Sweep",
        "description": recipe.get("description") or "",
        "parameter_count": document["law"].get("parameter_count") or "non_embedding",
        "isoflop": _isoflop(document),
        "law": _law(document),
        "predictions": predictions,
        "residuals": document.get("residuals") or [],
        "scatter": (document.get("fit") or {}).get("scatter"),
        "rollouts": _rollouts(document),
        "lr_probe": document.get("lr_probe"),
        "learning_rates": (document.get("forecast") or {}).get("learning_rates"),
        "parameter_counts": document.get("parameter_counts") or [],
        "forecast": document.get("forecast"),
        "mixture": document.get("mixture"),
        "saved_flops": document.get("saved_flops") or 0.0,
        "flops": sum(p["flops"] for p in document["points"]) - (document.get("saved_flops") or 0.0),
    }
    return found | {
        "headline": _headline(document, predictions),
        "checklist": _checklist(document, section, environment, runs, found),
        "unknown": _unknown(document, section, runs, found),
    }


# --- numbers ----------------------------------------------------------------------------------------------------


def _predictions(document: Mapping[str, Any], registered: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Every run that was predicted: before it started, unless `begun`; error is predicted / measured - 1."""
    rows = []
    for outcome in [*document.get("predicted", []), *document.get("heldout", [])]:
        entry = registered.get(outcome["name"], {})
        predicted, measured, low, high = (outcome.get(key) for key in ("predicted", "measured", "low", "high"))
        known = predicted is not None and measured is not None
        row = {key: outcome.get(key) for key in ("name", "N", "D", "flops", "predicted", "low", "high", "measured", "reason")}
        row |= {"heldout": bool(outcome.get("heldout", outcome in document.get("heldout", []))), "begun": bool(entry.get("begun"))}
        row |= {"written": entry.get("written"), "num_points": len(entry.get("points", [])) or None, "error": predicted / measured - 1 if known else None}
        row["inside"] = low <= measured <= high if known and low is not None and high is not None else None
        rows.append(row)
    counted = [row for row in rows if row["error"] is not None and not row["begun"]]
    judged = [row for row in counted if row["inside"] is not None]
    return {
        "runs": rows,
        "number": len(counted),
        "mean_error": fmean(abs(row["error"]) for row in counted) if counted else None,
        "inside": sum(row["inside"] for row in judged),
        "with_interval": len(judged),
    }


def _isoflop(document: Mapping[str, Any]) -> dict[str, Any]:
    count = document["law"].get("parameter_count") or "non_embedding"
    points = [p for p in document["points"] if p.get("loss") is not None and p.get("budget") and not p.get("shares")]
    isoflop = document.get("isoflop") or {}
    runs = [{"name": p["name"], "budget": p["budget"], "N": p[count], "loss": p["loss"], "heldout": p["heldout"]} for p in points]
    keys = ("minima", "allocation", "problem")
    return {"runs": runs, "curves": document.get("curves") or [], **{key: isoflop.get(key) or ([] if key == "minima" else None) for key in keys}}


def _law(document: Mapping[str, Any]) -> dict[str, Any]:
    law, fit = document["law"], document.get("fit") or {}
    parameters = fit.get("parameters") or {}
    intervals = law.get("intervals") or {}
    rows = [{"name": name, "value": value, **_ends(intervals.get(name))} for name, value in parameters.items()]
    forecast, frontier, allocation = document.get("forecast"), document.get("frontier") or {}, (document.get("isoflop") or {}).get("allocation")
    methods: list[dict[str, Any]] = []
    if "a" in parameters:
        ends = {key: forecast[key] for key in ("loss", "low", "high")} if forecast else {}
        methods.append(
            {
                "method": f"law {law['form']}",
                "a": parameters["a"],
                **_ends(intervals.get("a")),
                "gamma": parameters.get("gamma") or _frontier_slope(parameters),
                "forecast": ends,
            }
        )
    if allocation:
        methods.append(
            {"method": "isoFLOP minima", "a": allocation["exponent"], **_ends((allocation["low"], allocation["high"])), "gamma": None, "forecast": {}}
        )
    if (opinion := frontier.get("parameters")) and law["form"] != "frontier":
        said = frontier.get("prediction") or {}
        row = {"method": "law frontier", "a": opinion["a"], **_ends(frontier["intervals"].get("a")), "gamma": opinion["gamma"]}
        methods.append(row | {"forecast": {key: said[key] for key in ("loss", "low", "high") if key in said}})
    estimator = (document.get("method") or {}).get("estimator") or {}
    refusal = next((flag.partition(": ")[2] for flag in law["flags"] if flag.startswith("refused")), "")
    return {
        "form": law["form"],
        "formula": estimator.get("form", ""),
        "num_points": law.get("num_points") or 0,
        "parameters": rows,
        "methods": methods,
        "frontier_problem": frontier.get("problem", ""),
        "refusal": refusal,
    }


def _frontier_slope(parameters: Mapping[str, float]) -> float | None:
    """gamma of the least loss E + G C^-gamma that a law E + A / N^alpha + B / D^beta has."""
    alpha, beta = parameters.get("alpha"), parameters.get("beta", parameters.get("alpha"))
    return alpha * beta / (alpha + beta) if alpha and beta else None


def _rollouts(document: Mapping[str, Any]) -> dict[str, Any]:
    """Runs that the same estimator predicted without the top factors of compute, by the factor, and what that adds to the forecast's interval."""
    rollouts = (document.get("fit") or {}).get("rollouts") or []
    rows = [{**rollout, "predicted": rollout["loss"] * math.exp(rollout["error"])} for rollout in rollouts]
    cuts = []
    for cut in dict.fromkeys(row["cut"] for row in rows):
        errors = [row["error"] for row in rows if row["cut"] == cut]
        cuts.append({"cut": cut, "runs": len(errors), "mean": fmean(errors), "rms": math.sqrt(fmean(e * e for e in errors)), "largest": max(errors, key=abs)})
    return {"runs": rows, "cuts": cuts, "error_per_reach": document.get("error_per_reach"), "interval": (document.get("forecast") or {}).get("interval")}


def _ends(interval: Sequence[float | None] | None) -> dict[str, float | None]:
    low, high = interval if interval else (None, None)
    return {"low": low, "high": high}


# --- the headline, and what is not known --------------------------------------------------------------------------


def _headline(document: Mapping[str, Any], predictions: Mapping[str, Any]) -> dict[str, str]:
    """One sentence that claims no more than was shown. tone: 'good', 'bad' or 'doubt'."""
    law, forecast = document["law"], document.get("forecast")
    if document.get("fit") is None:
        refusal = next((flag.partition(": ")[2] for flag in law["flags"] if flag.startswith("refused")), "")
        return {"sentence": f"There is no law: {refusal.rstrip('.')}. Nothing is forecast.", "tone": "bad"}
    if mixture := document.get("mixture"):
        return _mixture_headline(mixture)
    held = [row for row in predictions["runs"] if row["heldout"] and row["error"] is not None and not row["begun"]]
    if not forecast:
        what = f"Law {law['form']} describes {plural(law['num_points'], 'run')}; no target is set, so nothing is forecast"
    else:
        interval = (
            f", 95% interval {loss_text(forecast['low'])} to {loss_text(forecast['high'])}" if forecast.get("low") is not None else ", without an interval"
        )
        what = (
            f"A run of {flops_text(forecast['flops'])}, trained as these were, is expected to reach {loss_text(forecast['loss'])} nats per token{interval}, "
            f"with N = {compact(forecast['N'])} and D = {compact(forecast['D'])}: {forecast['reach']:.3g} times the FLOPs of the dearest run"
        )
    if not held:
        return {"sentence": f"{what}. No held-out run was predicted before it ran, so nothing has tested this.", "tone": "doubt"}
    worst = max(held, key=lambda row: abs(row["error"]))
    off = f"{100 * abs(worst['error']):.2f}%"
    if len(held) == 1:
        tested = f"The held-out run was predicted {off} too {'high' if worst['error'] > 0 else 'low'} before it ran"
    else:
        tested = f"{len(held)} held-out runs were predicted before they ran, {off} off at most"
    outside = [row for row in held if row["inside"] is False]
    if outside:
        return {"sentence": f"{what}. {tested}, outside the interval, so the intervals cannot be relied on.", "tone": "bad"}
    if any(row["inside"] is None for row in held):
        return {"sentence": f"{what}. {tested}, without an interval; larger runs were not checked.", "tone": "doubt"}
    flags = [flag for flag in law["flags"] if not flag.startswith(("few_points", "counts_differ"))]
    return {"sentence": f"{what}. {tested}, inside the interval; larger runs were not checked.", "tone": "doubt" if flags else "good"}


def _mixture_headline(mixture: Mapping[str, Any]) -> dict[str, str]:
    shares = ", ".join(f"{name} {100 * share:.0f}%" for name, share in mixture["shares"].items())
    low, high = (mixture["measured"] or {}).get("gain_interval") or (0.0, 0.0)
    tested = mixture_remarks(mixture)[1:] or ["not measured at scale"]
    sentence = f"The recommended mixture for {flops_text(mixture['flops'])} is {shares}; {'; '.join([*mixture_remarks(mixture)[:1], *tested])}."
    return {"sentence": sentence, "tone": "good" if low > 0 else "bad" if high < 0 else "doubt"}


def mixture_table(mixture: Mapping[str, Any]) -> Table:
    """The fraction of every source that is recommended, with its interval. mixture: of law.json."""
    percents = lambda ends: f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}%" if ends else ""  # noqa: E731
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{100 * share:.1f}%",
            percents(mixture["intervals"].get(name)),
            f"{100 * mixture['baseline'].get(name, 0.0):.1f}%",
            f"{mixture['epochs'][name]:.2f}",
        )
        for name, share in mixture["shares"].items()
    ]
    return Table(("source", "share", "95% interval", "baseline", "epochs"), rows, range(1, 5))


def mixture_remarks(mixture: Mapping[str, Any]) -> list[str]:
    """What it gains: expected, and measured where it was trained at scale."""
    ends = mixture["gain_interval"]
    interval = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    said = [f"expected gain over the baseline: {mixture['gain']:.2f}%{interval} of the loss{'' if mixture['better'] else ', which is not significant'}"]
    if measured := mixture["measured"]:
        low, high = measured["gain_interval"]
        verdict = "better" if low > 0 else "worse" if high < 0 else "not significantly different from the baseline"
        said.append(f"measured at scale: {measured['gain']:.2f}% ({low:.2f} to {high:.2f}) over {len(measured['baseline'])} pairs of seeds, {verdict}")
    return said


def _unknown(document: Mapping[str, Any], section: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> list[dict[str, str]]:
    """Every caveat of law and forecast, and what no sweep like this one can know."""
    forecast = document.get("forecast") or {}
    frontier = (document.get("frontier") or {}).get("flags") or []
    flags = dict.fromkeys([*document["law"]["flags"], *(forecast.get("flags") or ()), *(f"missing: {text}" for text in document.get("missing", []))])
    rows = [{"code": flag.partition(": ")[0], "text": _sentence(flag.partition(": ")[2] or flag)} for flag in flags]
    if any(flag.startswith("off_frontier") for flag in frontier):
        rows.append({"code": "off_frontier", "text": "Law frontier was asked for a size that is not its own best one."})
    if not any(row["heldout"] for row in found["predictions"]["runs"]):
        rows.append({"code": "no_heldout", "text": "No run was held out, so how far the law holds beyond its own runs is not known."})
    if begun := [row["name"] for row in found["predictions"]["runs"] if row["begun"]]:
        rows.append({"code": "begun", "text": f"Predicted only after they had started, and not counted: {', '.join(begun)}."})
    if document.get("fit") is not None and not found["rollouts"]["runs"] and not found["mixture"]:
        text = "No rollout was possible: without the dearest runs too few are left, or the law takes none, so the form's own error is not in the intervals."
        rows.append({"code": "no_rollouts", "text": text})
    if found["mixture"]:
        rows.append(
            {"code": "one_size", "text": "The regression is one of models of one size and length; that the best mixture stays the best at others is assumed."}
        )
    elif not found["lr_probe"]:
        text = "Learning rates were not tuned by this sweep; where they are off at some sizes, the exponents are off."
        rows.append({"code": "no_lr_probe", "text": text})
    else:
        text = "Learning rates were tuned at the cheapest runs only; whether they are right at larger scale, no statistic of small runs shows."
        rows.append({"code": "lr_at_scale", "text": text})
    if missed := [place_text(place) for place in (found["lr_probe"] or {}).get("places", []) if not place["problem"] and _probe_note(place)]:
        text = f"At {'; '.join(missed)} the parabola of the learning-rate probe is not that of its runs, so the rates of later runs are in doubt."
        rows.append({"code": "probe_misfit", "text": text})
    if len(batches := _batches(section.get("train") or {}, runs)) > 1:
        text = f"Runs have different batch sizes, {batches[0]} to {batches[-1]} sequences, which changes their losses by more than N and D say."
        rows.append({"code": "batch_differs", "text": text})
    if not _repeats(runs):
        rows.append({"code": "one_seed", "text": "Every run has one seed, so the noise of a run is estimated from the scatter around the law."})
    scope = ["this data", "this architecture", *([f"sequences of {section['train']['seq_len']} tokens"] if section else [])]
    rows.append({"code": "scope", "text": f"The law is one of {', '.join(scope[:-1])} and {scope[-1]}; of others it says nothing."})
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _repeats(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Runs that are other seeds of a run."""
    return [run["name"] for run in runs if "seed" in run.get("overrides", {})]


# --- the checklist --------------------------------------------------------------------------------------------------


def _checklist(
    document: Mapping[str, Any], section: Mapping[str, Any], environment: Mapping[str, Any], runs: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> list[dict[str, str]]:
    """What should be reported with a scaling law (Li et al. 2025, '(Mis)Fitting'), from the sweep's files."""
    law, method, points = document["law"], document.get("method") or {}, document["points"]
    train, estimator = section.get("train") or {}, method.get("estimator") or {}
    done = [run for run in runs if run["status"] == "done"]
    held, diverged = [p for p in points if p["heldout"]], document.get("diverged", [])
    fitted = found["residuals"] or [p for p in points if not p["heldout"]]
    count = found["parameter_count"]
    others = len(points) - len(fitted) - len(held)
    left_out = [f"{plural(n, 'run')} {why}" for n, why in ((len(held), "held out"), (len(diverged), "diverged"), (others, "of the learning-rate probe")) if n]
    batches = _batches(train, done)
    varied = sorted({key for run in done for key in run["overrides"]} - {"max_steps", "batch_size", "seed"})
    schedule = train.get("schedule") or {}
    epochs = [run["epochs"] for run in done if run.get("epochs") is not None]
    probe = found["lr_probe"]
    answers: list[tuple[str, Any]] = [
        ("What was fitted", estimator.get("form") or f"law {law['form']}"),
        ("Runs in the fit", f"{len(fitted)}" + (f"; left out: {', '.join(left_out)}" if left_out else "")),
        ("Range of N", _span([p.get("N") or p[count] for p in fitted])),
        ("Range of D", _span([p.get("D") or p["tokens"] for p in fitted])),
        ("Range of FLOPs", _span([p["flops"] for p in fitted], lambda v: with_unit(v, "FLOPs"))),
        ("Loss", method.get("loss") and f"{method['loss']} ({plural(method['eval_documents'], 'document')})"),
        ("N, parameters counted", COUNTED.get(count)),
        ("D, tokens counted", method.get("D")),
        ("C, FLOPs counted", method.get("C") and f"{method['C']}; the law's own C is 6ND"),
        ("Objective of the fit", estimator.get("objective")),
        ("Initializations of the fit", estimator.get("starts")),
        ("Intervals", (estimator.get("intervals") or NOT_RECORDED) + f"; {method['bootstrap']} draws" if method.get("bootstrap") else "none"),
        ("Architecture", train.get("architecture") and _architecture(train["architecture"])),
        ("What differs between runs", ", ".join(varied) + ", steps" if varied else None),
        ("Data", method.get("train_tokens") and f"{compact(method['train_tokens'])} training tokens, vocabulary {method['vocab_size']:,}"),
        ("Repetition of data", f"at most {max(epochs):.2g} epochs" if epochs else None),
        ("Optimizer", train.get("optimizer") and part_text(train["optimizer"])),
        ("Learning rate", _lr_rule(train, probe) if train else None),
        ("Schedule", schedule and f"{part_text(schedule)}; to the end of each run"),
        ("Warmup", _warmup(schedule) if schedule else None),
        ("Batch", batches and train and _batch(batches, train)),
        ("Seeds", _seeds(train, done) if train else None),
        ("Precision", train.get("precision")),
        ("Held-out runs", f"{', '.join(p['name'] for p in held)}; predicted, not in the law above" if held else "none"),
        ("Code", environment.get("feeb") and f"feeb {environment['feeb']} {str(environment.get('commit', ''))[:10]}".strip()),
    ]
    return [{"item": item, "answer": str(answer) if answer else NOT_RECORDED} for item, answer in answers]


def _span(values: Sequence[float], show: Any = compact) -> str:
    if not values:
        return "none"
    low, high = min(values), max(values)
    return f"{show(low)} to {show(high)}, {math.log10(high / low):.1f} decades" if high > low else show(low)


def _architecture(architecture: Mapping[str, Any]) -> str:
    parts = [f"{key} {value['name']}" for key, value in architecture.items() if isinstance(value, Mapping) and "name" in value]
    return ", ".join([str(architecture["name"]), *parts])


def _lr_rule(train: Mapping[str, Any], probe: Mapping[str, Any] | None) -> str:
    rule = train.get("lr_scaling")
    text = f"lr_scaling {part_text(rule)}" if rule else "the recipe's at every size"
    return f"{text}, times the ridge of a probe at {plural(len(probe['places']), 'place')}" if probe else f"{text}, not tuned by the sweep"


def _warmup(schedule: Mapping[str, Any]) -> str:
    """Of the part's options whose names say warmup."""
    lengths = [f"{100 * v:g}% of each run's steps" if key.endswith("fraction") else plural(v, "step") for key, v in schedule.items() if "warmup" in key and v]
    return ", ".join(lengths) or "none"


def _batches(train: Mapping[str, Any], runs: Iterable[Mapping[str, Any]]) -> list[int]:
    """Sequences per step of the runs, each once."""
    return sorted({run["overrides"].get("batch_size", train.get("batch_size")) for run in runs} - {None})


def _batch(batches: Sequence[int], train: Mapping[str, Any]) -> str:
    sequences = plural(batches[0], "sequence") if len(batches) == 1 else f"{batches[0]} to {batches[-1]} sequences (halved where a run had too few steps)"
    return f"{sequences} of {train['seq_len']} tokens"


def _seeds(train: Mapping[str, Any], done: Sequence[Mapping[str, Any]]) -> str:
    repeats = _repeats(done)
    return f"{train['seed']} for every run" + (f"; other seeds: {', '.join(repeats)}" if repeats else "")


# --- tables ---------------------------------------------------------------------------------------------------------


def loss_text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def flops_text(value: float) -> str:
    return with_unit(value, "FLOPs")


def number_text(value: float | None) -> str:
    """Four digits."""
    return "" if value is None else f"{value:#.4g}".rstrip(".")


def between(low: float | None, high: float | None, show: Any = number_text) -> str:
    return "" if low is None or high is None else f"{show(low)} to {show(high)}"


def _signed(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:+.2f}%"


def tables(of: Sections) -> dict[str, Table]:
    """The tables of the page by section; a section without rows has none."""
    made = {
        "mixture": mixture_table(of["mixture"]) if of["mixture"] else Table((), []),
        "parameters": Table(
            ("parameter", "value", "95% interval"),
            [(p["name"], number_text(p["value"]), between(p["low"], p["high"])) for p in of["law"]["parameters"]],
            range(1, 3),
        ),
        "methods": Table(
            ("method", "a: N grows as C^a", "95% interval", "γ: loss falls as C^-γ", "loss at the target"),
            [(m["method"], f"{m['a']:.3f}", between(m["low"], m["high"]), number_text(m["gamma"]), _with_ends(m["forecast"])) for m in of["law"]["methods"]],
            range(1, 5),
        ),
        "minima": Table(("budget", "best N", "95% interval", "best D", "loss", "note"), [_minimum_row(m) for m in of["isoflop"]["minima"]], range(1, 5)),
        "predictions": Table(
            ("run", "FLOPs", "predicted", "95% interval", "measured", "error", "inside"),
            [_prediction_row(row) for row in of["predictions"]["runs"]],
            range(1, 6),
        ),
        "rollouts": Table(
            ("left out", "runs predicted", "mean error", "root mean square", "largest"),
            [(f"top {c['cut']:.3g}x", str(c["runs"]), _signed(c["mean"]), f"{100 * c['rms']:.2f}%", _signed(c["largest"])) for c in of["rollouts"]["cuts"]],
            range(1, 5),
        ),
        "rollout_runs": Table(
            ("left out", "run", "reach", "predicted", "measured", "error"),
            [
                (f"top {r['cut']:.3g}x", r["name"], f"{r['reach']:.3g}x", loss_text(r["predicted"]), loss_text(r["loss"]), _signed(math.expm1(r["error"])))
                for r in of["rollouts"]["runs"]
            ],
            range(2, 6),
        ),
        "lr_probe": Table(
            ("place", "FLOPs", "factors tried", "best factor", "note"),
            [
                (place_text(p), flops_text(p["flops"]), ", ".join(_tried(t) for t in p["tried"]), f"{p['best']:.3g}", _probe_note(p))
                for p in (of["lr_probe"] or {}).get("places", [])
            ],
        ),
        "learning_rates": Table(
            ("option", "learning rate of the forecast's run"),
            [(key, f"{lr:.4g}") for key, lr in ((of["learning_rates"] or {}).get("options") or {}).items()],
            range(1, 2),
        ),
        "parameter_counts": Table(
            ("parameters counted as N", "N", "a by the law", "95% interval", "a by isoFLOP minima", "α", "β"),
            [_count_row(r) for r in of["parameter_counts"]],
            range(1, 7),
        ),
        "checklist": Table(("question", "answer"), [(row["item"], row["answer"]) for row in of["checklist"]]),
    }
    return {name: table for name, table in made.items() if table.rows}


def _with_ends(row: Mapping[str, Any]) -> str:
    if not row:
        return ""
    ends = between(row.get("low"), row.get("high"), loss_text)
    return loss_text(row["loss"]) + (f" ({ends})" if ends else "")


def _minimum_row(m: Mapping[str, Any]) -> tuple[str, ...]:
    seen = m.get("size") is not None
    ends = minimum_ends(m)
    return (
        flops_text(m["budget"]),
        compact(m["size"]) if seen else "",
        between(ends[0], ends[1], compact) if ends else "",
        compact(m["tokens"]) if seen else "",
        loss_text(m["loss"]),
        m["problem"],
    )


def minimum_ends(m: Mapping[str, Any]) -> tuple[float, float] | None:
    """95 % interval of N at a minimum under the noise of runs; none where it says nothing."""
    if m.get("problem") or m.get("ln_size_sd") is None:
        return None
    return m["size"] * math.exp(-2 * m["ln_size_sd"]), m["size"] * math.exp(2 * m["ln_size_sd"])


def _prediction_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    inside = {True: "yes", False: "no", None: ""}[row["inside"]]
    name = row["name"] + (" (held out)" if row["heldout"] and not row["name"].startswith("heldout") else "")
    error = _signed(row["error"]) or (row["reason"] or "not measured").partition("\n")[0]
    if row["predicted"] is None:
        error = "no law yet"
    return (
        name,
        flops_text(row["flops"]),
        loss_text(row["predicted"]),
        between(row["low"], row["high"], loss_text),
        loss_text(row["measured"]),
        error,
        "predicted too late" if row["begun"] else inside,
    )


def _tried(run: Mapping[str, Any]) -> str:
    return f"{run['factor']:g}: {loss_text(run['loss']) or 'no loss'}"


def _probe_note(place: Mapping[str, Any]) -> str:
    """Why a place's best factor is not to be relied on."""
    least = min((run for run in place["tried"] if run["loss"] is not None), key=lambda run: run["loss"])["factor"]
    far = abs(math.log(place["best"] / least)) > FAR_FROM_LEAST
    return place["problem"] or (f"the run with the lowest loss had {least:g}: the parabola does not fit" if far else "")


def _count_row(row: Mapping[str, Any]) -> tuple[str, ...]:
    parameters, isoflop = row["parameters"], row["isoflop"]
    low, high = row["interval"] or (None, None)
    return (
        COUNTS[row["parameter_count"]],
        between(row["N"][0], row["N"][1], compact),
        number_text(parameters.get("a")) or row["problem"],
        between(low, high),
        number_text(isoflop["exponent"]) if isoflop else "",
        number_text(parameters.get("alpha")),
        number_text(parameters.get("beta")),
    )


def place_text(place: Mapping[str, Any]) -> str:
    return f"N {compact(place['N'])}, D {compact(place['D'])}"


# --- what is said under each heading ---------------------------------------------------------------------------------


def remarks(of: Sections) -> dict[str, list[str]]:
    """Sentences by section, in the order of the page; the sections that are not there say why."""
    isoflop, predictions, law = of["isoflop"], of["predictions"], of["law"]
    if of["mixture"]:
        formula = law["formula"] or f"law {law['form']}"
        return {"law": [f"{_sentence(formula)[:-1]}, through {plural(law['num_points'], 'run')}."], "predictions": _prediction_remarks(predictions)}
    return {
        "isoflop": _isoflop_remarks(isoflop),
        "law": [f"{law['formula'] or 'Law ' + law['form']}, through {plural(law['num_points'], 'run')}; N is {COUNTED[of['parameter_count']]}."]
        if law["parameters"]
        else [f"No law: {_sentence(law['refusal'])}"],
        "methods": [f"Law frontier: {_sentence(law['frontier_problem'])}"] if law["frontier_problem"] else [],
        "predictions": _prediction_remarks(predictions),
        "residuals": []
        if of["residuals"]
        else ["The law goes through isoFLOP minima, so runs have no residuals." if law["parameters"] else "Without a law there are no residuals."],
        "rollouts": _rollout_remarks(of["rollouts"], bool(law["parameters"])),
        "lr_probe": _probe_remarks(of["lr_probe"], of["learning_rates"]),
    }


def _isoflop_remarks(isoflop: Mapping[str, Any]) -> list[str]:
    if not isoflop["minima"]:
        return ["No runs share a budget, so there are no isoFLOP curves."]
    allocation = isoflop["allocation"]
    if not allocation:
        return [f"The minima give no exponent: {_sentence(isoflop['problem'] or 'fewer than two are interior')}"]
    ends = between(allocation["low"], allocation["high"], lambda v: f"{v:.3f}")
    return [f"The minima of {plural(allocation['num_minima'], 'budget')} grow as C^{allocation['exponent']:.3f}" + (f" ({ends})." if ends else ".")]


def _prediction_remarks(predictions: Mapping[str, Any]) -> list[str]:
    if not predictions["runs"]:
        return ["No run was predicted before it ran."]
    if begun := sum(row["begun"] for row in predictions["runs"]):
        late = f"{plural(begun, 'prediction')} were made when the run had begun or was in the workspace already, so they test nothing."
    if not predictions["number"]:
        return [late if begun else "No prediction has an outcome to compare with: there was no law yet, or the run has no loss."]
    inside = f"; {predictions['inside']} of {predictions['with_interval']} inside their 95% intervals" if predictions["with_interval"] else ""
    summary = f"{plural(predictions['number'], 'run')} predicted before the start; mean absolute error {100 * predictions['mean_error']:.2f}%{inside}."
    return [summary, late] if begun else [summary]


def _rollout_remarks(rollouts: Mapping[str, Any], fitted: bool) -> list[str]:
    if not rollouts["runs"]:
        return ["Too few runs are left without the dearest ones, so there are no rollouts." if fitted else "Without a law there are no rollouts."]
    said = []
    if rollouts["error_per_reach"]:
        said.append(f"Beyond noise the law was off by {100 * rollouts['error_per_reach']:.2f}% per factor e of FLOPs.")
    if (interval := rollouts["interval"]) and interval.get("half_width") is not None:
        with_, without = (100 * math.expm1(interval[key]) for key in ("half_width", "without_rollouts"))
        how = f"from ±{without:.2f}% to ±{with_:.2f}%" if with_ - without > 0.005 else f"no further than ±{with_:.2f}%"
        said.append(
            f"In the fit of the forecast, which has the held-out runs too, it is {100 * interval['error_per_reach']:.2f}%: at {interval['reach']:.3g} times the "
            f"dearest fitted run that widens the interval {how}."
        )
    return said


def _probe_remarks(probe: Mapping[str, Any] | None, rates: Mapping[str, Any] | None) -> list[str]:
    if not probe:
        return ["The planner ran no learning-rate probe."]
    ridge = probe["ridge"]
    said = [
        f"Ridge: ln(best factor) = {ridge['c0']:+.3f} {ridge['c1']:+.3f} ln(N / {compact(ridge['N'])}) {ridge['c2']:+.3f} ln(D / {compact(ridge['D'])}); "
        "a factor of 1 is the recipe's own learning rate."
    ]
    if rates:
        said.append(f"The forecast's run would use {rates['factor']:.3g} times the recipe's learning rates.")
    return said
