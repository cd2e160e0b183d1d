"""The content of a report, taken from finished artifacts: headline numbers, summary sentences, tables and samples.

Every number comes from a manifest or a result file; nothing is computed that a stage did not measure. Any stage may be
missing: the report then omits its content.
"""

from __future__ import annotations

import io
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from feebcore.artifacts import Artifact
from feebcore.errors import plural
from feebcore.evaluate.benchmark import intervals
from feebcore.files import read_json, read_jsonl
from feebcore.report.figures import NAMES, duration, stage_title
from feebcore.report.probe_figures import within_peak
from feebcore.report.style import byte_size, compact
from feebcore.run.contracts import unchecked_in, unchecked_note

Artifacts = Mapping[str, Artifact]


@dataclass(frozen=True)
class Card:
    """A headline number. value: the number. title: what it is. note: context, such as a reference value."""

    value: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Sentence:
    """One row of the summary. topic: a word or two. text: one or two sentences. tone: 'good', 'bad', 'doubt' or ''."""

    topic: str
    text: str
    tone: str = ""


@dataclass
class SampleGroup:
    """Sampled texts under one heading. items: {prompt, text, note, good} each; good: True, False, or None without a verdict."""

    title: str
    note: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)


def percent(fraction: float) -> str:
    """0.485 as '48%', 0.052 as '5.2%'."""
    return f"{100 * fraction:.1f}%" if 0 < fraction < 0.1 or 0.9 < fraction < 1 else f"{100 * fraction:.0f}%"


def model_name(stage: str) -> str:
    """How a report names the model of a stage."""
    return NAMES.get(stage, stage)


def metrics_of(artifacts: Artifacts, stage: str) -> dict[str, Any]:
    return artifacts[stage].metrics if stage in artifacts else {}


def read_optional(artifacts: Artifacts, stage: str, name: str) -> Any:
    """A JSON or JSONL file of a stage; empty if the stage or the file is missing."""
    if stage not in artifacts or not (artifacts[stage].path / name).exists():
        return [] if name.endswith("jsonl") else {}
    path = artifacts[stage].path / name
    return read_jsonl(path) if name.endswith("jsonl") else read_json(path)


# --- headline numbers -------------------------------------------------------------------------------------------


UTILIZATIONS = {"mfu": "MFU", "matmul_utilization": "matmul utilization"}
"""By what the peak is of: the GPU's data sheet, or a measurement."""


def utilization_card(rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Of rows of probe throughput: the median fraction of the peak."""
    for key, title in UTILIZATIONS.items():
        if values := [row[key] for row in rows if row.get(key) is not None]:
            median = statistics.median(within_peak(values))
            if key == "mfu":
                return [Card(percent(median), title, "relative to the GPU's data sheet")]
            note = "relative to the measured matmul peak" if max(values) <= 1 else "relative to the fastest interval, which beat the measured peak"
            return [Card(percent(median), title, note)]
    return []


def cards(artifacts: Artifacts) -> list[Card]:
    """The headline numbers, in the order of the page."""
    headline = []
    pretrain, sweep, rl, download = (metrics_of(artifacts, s) for s in ("pretrain", "sweep", "rl", "download"))
    if (bits := pretrain.get("val_bits_per_byte")) is not None:
        headline.append(Card(f"{bits:.3f}", "validation loss", f"bits per byte{_on_a_part(pretrain)}"))
    if pretrain.get("parameters"):
        counts = pretrain["parameters"]
        headline.append(Card(compact(counts["total"]), "parameters", f"{compact(counts['non_embedding'])} non-embedding"))
    if pretrain.get("tokens"):
        speed = f"{compact(pretrain['tokens_per_second'])} tokens/s" if pretrain.get("tokens_per_second") else ""
        headline.append(Card(compact(pretrain["tokens"]), "training tokens", speed))
    headline += utilization_card(read_optional(artifacts, "pretrain", "probes/throughput.jsonl"))
    if (error := sweep.get("heldout_relative_error")) is not None:
        nearest = sweep.get("nearest_run_error")
        note = f"nearest-run baseline: {percent(nearest)}" if nearest is not None else "relative error on the held-out run"
        headline.append(Card(percent(error), "scaling-law prediction error", note))
    before, after = rl.get("accuracy_before"), rl.get("accuracy_after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        count = plural(after["n"], "held-out problem")
        headline.append(Card(f"{percent(before['value'])} → {percent(after['value'])}", "task accuracy, RL", f"sampled, {count}"))
    for bar in evaluation_bars(artifacts):
        if bar["benchmark"] == "python_parses":
            model, value, *_ = bar["models"][0]
            headline.append(Card(percent(value), "valid Python functions", model_name(model)))
    if "bytes" in download:
        headline.append(Card(byte_size(download["bytes"]), "text", plural(download["documents"], "document")))
    if artifacts:
        headline.append(Card(duration(sum(a.manifest["seconds"] for a in artifacts.values())), "total time", plural(len(artifacts), "stage")))
    return headline


def first_batch(artifacts: Artifacts, lines: int = 80) -> str:
    """The first lines written by callback first_batch; empty if it was not enabled."""
    path = artifacts["pretrain"].path / "probes" / "first_batch.txt" if "pretrain" in artifacts else None
    if path is None or not path.is_file():
        return ""
    return "\n".join(path.read_text(encoding="utf-8").splitlines()[:lines])


# --- summary ----------------------------------------------------------------------------------------------------


def sentences(artifacts: Artifacts) -> list[Sentence]:
    """The rows of the summary, in the order of the stages."""
    return [sentence for describe in (_unchecked, _data, _pretraining, _scaling_law, _fine_tuning, _rl, _evaluation) for sentence in describe(artifacts)]


def _unchecked(artifacts: Artifacts) -> list[Sentence]:
    return [Sentence("Unchecked", note[0].upper() + note[1:], "bad") for note in unchecked_note(unchecked_in(artifacts.values()))]


def _data(artifacts: Artifacts) -> list[Sentence]:
    download, shard = metrics_of(artifacts, "download"), metrics_of(artifacts, "shard")
    if "documents" not in download:
        return []
    text = f"{plural(download['documents'], 'document')}, {byte_size(download['bytes'])}"
    if "val_documents" in download:
        text += f"; validation split: {plural(download['val_documents'], 'document')}, {byte_size(download['val_bytes'])}"
    tokens, vocab_size = shard.get("train_tokens", 0) + shard.get("val_tokens", 0), metrics_of(artifacts, "tokenizer").get("vocab_size")
    if tokens and vocab_size:
        text += f". {compact(tokens)} tokens with a vocabulary of {vocab_size:,}"
    return [Sentence("Data", f"{text}.")]


def _pretraining(artifacts: Artifacts) -> list[Sentence]:
    metrics = metrics_of(artifacts, "pretrain")
    if "val_bits_per_byte" not in metrics:
        return []
    details = [f"{compact(metrics['parameters']['total'])} parameters"] if metrics.get("parameters") else []
    details += [f"{compact(metrics['tokens'])} training tokens"] if metrics.get("tokens") else []
    size = f" ({', '.join(details)})" if details else ""
    return [Sentence("Pretraining", f"Validation loss: {metrics['val_bits_per_byte']:.3f} bits per byte{_on_a_part(metrics)}{size}.")]


def _on_a_part(metrics: Mapping[str, Any]) -> str:
    """What to say of a validation loss that is of a part of the split; stage evaluate may measure all of it."""
    return f", on {percent(metrics['val_share'])} of the validation split" if "val_share" in metrics else ""


def _scaling_law(artifacts: Artifacts) -> list[Sentence]:
    metrics = metrics_of(artifacts, "sweep")
    if not metrics:
        return []
    rows = []
    error, nearest = metrics.get("heldout_relative_error"), metrics.get("nearest_run_error")
    if error is not None:
        num_runs = (metrics.get("law") or {}).get("num_points")
        text = f"Fitted to {plural(num_runs, 'run') if num_runs else 'the runs of the sweep'}. Relative error on the held-out run: {percent(error)}"
        tone = ""
        if nearest is not None:
            tone = "good" if error < nearest else "bad"
            text += f"; nearest-run baseline: {percent(nearest)}"
            text += "." if error < nearest else ", so the law does not beat it."
        else:
            text += "."
        rows.append(Sentence("Scaling law", text, tone))
    flags = (metrics.get("law") or {}).get("flags") or []
    if flags:
        caveats = [f.partition(":")[2].strip() or f.replace("_", " ") for f in flags]
        rows.append(Sentence("Scaling-law caveats", " ".join(c[:1].upper() + c[1:].rstrip(".") + "." for c in caveats), "doubt"))
    return rows


def _fine_tuning(artifacts: Artifacts) -> list[Sentence]:
    metrics = metrics_of(artifacts, "sft")
    accuracy = metrics.get("accuracy_sampled", metrics.get("accuracy"))
    value = accuracy.get("value") if isinstance(accuracy, Mapping) else accuracy
    if value is None:
        return []
    task = _task_of(artifacts, "sft")
    count = f" of {plural(accuracy['n'], 'problem')}" if isinstance(accuracy, Mapping) else ""
    subject = f"Held-out accuracy on {task}" if task else "Held-out accuracy"
    text = f"{subject}: {percent(value)}{count} after {plural(metrics.get('examples', 0), 'example')}, sampled at temperature 1."
    if isinstance(metrics_of(artifacts, "rl").get("accuracy_before"), Mapping) or "evaluate" in artifacts:
        text += " Later stages measure this model again, with samples of their own, so their numbers differ by chance."
    return [Sentence("Fine-tuning", text)]


def _task_of(artifacts: Artifacts, stage: str) -> str:
    section = artifacts[stage].manifest.get("section") or {}
    return str((section.get("task") or {}).get("name", "")).replace("_", " ")


def _rl(artifacts: Artifacts) -> list[Sentence]:
    metrics = metrics_of(artifacts, "rl")
    before, after = metrics.get("accuracy_before"), metrics.get("accuracy_after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return []
    section = artifacts["rl"].manifest.get("section") or {}
    algorithm = str((section.get("algorithm") or {}).get("name", "")).upper()
    task = _task_of(artifacts, "rl")
    subject = f"{algorithm or 'RL'} on {task}" if task else algorithm or "RL"
    rollouts = f" after {plural(metrics['rollouts'], 'rollout')}" if metrics.get("rollouts") else ""
    text = f"{subject}: held-out accuracy {percent(before['value'])} → {percent(after['value'])}{rollouts}, on {plural(after['n'], 'problem')}."
    if after["low"] > before["high"]:
        return [Sentence("Reinforcement learning", f"{text} Significant improvement: the 95% intervals do not overlap.", "good")]
    if after["high"] < before["low"]:
        return [Sentence("Reinforcement learning", f"{text} Significant regression: the 95% intervals do not overlap.", "bad")]
    return [Sentence("Reinforcement learning", f"{text} Not significant: the 95% intervals overlap.", "doubt")]


def _evaluation(artifacts: Artifacts) -> list[Sentence]:
    rows = []
    for bar in evaluation_bars(artifacts):
        by_stage = {s[0]: s for s in bar["models"]}
        first, *later = by_stage  # in the order of the recipe
        if bar["benchmark"] not in ("bits_per_byte", "python_parses") or not later:
            continue
        base, tuned = by_stage[first], by_stage[later[-1]]
        significant = None not in (base[2], tuned[2]) and (tuned[2] > base[3] or tuned[3] < base[2])
        worse = (tuned[1] > base[1]) == (bar["better"] == "lower")
        show = percent if bar["percent"] else lambda v: f"{v:.3f}"
        short = "LM" if bar["benchmark"] == "bits_per_byte" else "Code"
        what = "validation loss in bits per byte" if bar["benchmark"] == "bits_per_byte" else "valid Python functions"
        stage = "RL" if later[-1] == "rl" else "SFT" if later[-1] == "sft" else later[-1]
        overlap = "" if significant else " The 95% intervals overlap."
        text = f"{what[:1].upper()}{what[1:]}: {show(base[1])} before, {show(tuned[1])} after.{overlap}"
        regression = worse and significant
        rows.append(Sentence(f"{short} {'regression' if regression else 'performance'} after {stage}", text, "bad" if regression else ""))
    return rows


# --- evaluation -------------------------------------------------------------------------------------------------


def evaluation_bars(artifacts: Artifacts) -> list[dict[str, Any]]:
    """One entry per benchmark and metric: benchmark, metric, title, percent, better, models [(name, value, low, high)]."""
    results, about = read_optional(artifacts, "evaluate", "results.json"), read_optional(artifacts, "evaluate", "benchmarks.json")
    bars = []
    for benchmark, models in results.items():
        description = about.get(benchmark, {})
        names = list(dict.fromkeys(metric for result in models.values() for metric in intervals(result)))
        for metric in names:
            rows = [(s, r[metric]) for s, r in models.items() if metric in r]
            title = description.get("title", benchmark) + (f", {metric}" if len(names) > 1 else "")
            counts = {m["n"] for _, m in rows if "n" in m}
            title += f" (n = {counts.pop()})" if description.get("percent") and len(counts) == 1 else ""
            bars.append(
                {
                    "benchmark": benchmark,
                    "metric": metric,
                    "title": title,
                    "percent": description.get("percent", False),
                    "better": description.get("better", "higher"),
                    "models": [(s, m["value"], m.get("low"), m.get("high")) for s, m in rows],
                }
            )
    return bars


# --- samples ----------------------------------------------------------------------------------------------------


def sample_groups(artifacts: Artifacts, each: int = 6) -> list[SampleGroup]:
    """Sampled texts: of the pretrained model, of benchmarks, and RL rollouts unless a table shows them."""
    groups = []
    samples = read_optional(artifacts, "pretrain", "samples.jsonl")
    if samples:
        final = [r for r in samples if r.get("step") == samples[-1].get("step")][:each]
        items = [{"prompt": r["prompt"], "text": r["text"], "note": "", "good": None} for r in final]
        groups.append(SampleGroup("Samples from the base model", f"step {final[0].get('step')}; the prompt is gray", items))
    for benchmark, models in read_optional(artifacts, "evaluate", "samples.json").items():
        for model, rows in models.items():
            title = f"{benchmark.replace('_', ' ').capitalize()}, {model_name(model)}"
            if rows and "parses" in rows[0]:
                count = each if model == next(iter(models)) else each // 2
                items = [
                    {"prompt": r["prompt"].strip("\n"), "text": r["text"].removeprefix(r["prompt"]), "note": "", "good": r["parses"]}
                    for r in _mixed(rows, "parses", count)
                ]
                groups.append(SampleGroup(f"Functions, {model_name(model)}", "a mix of completions that parse as Python and ones that do not", items))
            elif rows and "completion" not in rows[0]:
                items = [{"prompt": str(r.get("prompt", "")), "text": str(r.get("text", "")), "note": "", "good": None} for r in rows[:each]]
                groups.append(SampleGroup(title, "", items))
    rollouts = read_optional(artifacts, "rl", "rollouts.jsonl")
    if rollouts and not answer_tables(artifacts):
        ends = [r for r in rollouts if r["step"] in (rollouts[0]["step"], rollouts[-1]["step"])]
        items = [{"prompt": r["prompt"], "text": r["completion"], "note": f"step {r['step']}", "good": (r.get("reward") or 0) >= 1} for r in ends[:each]]
        groups.append(SampleGroup("RL rollouts", "first and last step", items))
    return groups


def answer_tables(artifacts: Artifacts, most: int = 8) -> list[dict[str, Any]]:
    """Completions of every model for the same held-out problems: {title, models, rows: [{prompt, answer, cells: [{text, good}]}]}."""
    tables = []
    about = read_optional(artifacts, "evaluate", "benchmarks.json")
    for benchmark, models in read_optional(artifacts, "evaluate", "samples.json").items():
        answered = {s: {r["prompt"]: r for r in rows} for s, rows in models.items() if rows and "completion" in rows[0]}
        if not answered:
            continue
        prompts = [p for p in next(iter(answered.values())) if all(p in rows for rows in answered.values())][:most]
        rows = []
        for prompt in prompts:
            cells = [{"text": of[prompt]["completion"], "good": of[prompt].get("reward", 0) >= 1} for of in answered.values()]
            rows.append({"prompt": prompt, "answer": next(iter(answered.values()))[prompt].get("answer", ""), "cells": cells})
        title = about.get(benchmark, {}).get("title", benchmark.replace("_", " ").capitalize())
        tables.append({"title": title, "models": [model_name(s) for s in answered], "rows": rows})
    return tables


def _mixed(rows: Sequence[Mapping[str, Any]], key: str, count: int) -> list[Mapping[str, Any]]:
    """Up to `count` rows, half of each outcome where both exist."""
    good, bad = [r for r in rows if r[key]], [r for r in rows if not r[key]]
    half = min(len(good), max(count - len(bad), count // 2))
    return [*good[:half], *bad[: count - half]]


# --- reproducibility --------------------------------------------------------------------------------------------


def settings(artifacts: Artifacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """What one asks first of a run: the model, then the training of each stage that trains, each as (title, [(name, value)])."""
    tables = []
    for stage, artifact in artifacts.items():
        section = artifact.manifest.get("section") or {}
        if architecture := section.get("architecture"):
            model = [("architecture", part_text(architecture)), *((k, _text(v)) for k, v in architecture.items() if k != "name" and _is_set(v))]
            if vocab := metrics_of(artifacts, "tokenizer").get("vocab_size"):
                model.append(("vocabulary", f"{vocab:,}"))
            if stage in ("pretrain", "sft"):
                tables.append(("Model", model))
        if "max_steps" in section:
            rows = [(k, _text(section[k])) for k in SETTINGS if _is_set(section.get(k)) or (k == "seed" and k in section)]
            if precision := artifact.metrics.get("precision"):
                rows = [(k, f"{v} ({precision})" if k == "precision" and v == "auto" else v) for k, v in rows]
            tables.append((stage_title(stage), rows))
    return tables


SETTINGS = (
    *("task", "algorithm", "objective", "optimizer", "schedule", "lr_scaling", "max_steps", "batch_size", "prompts_per_step", "group_size"),
    *("seq_len", "grad_clip", "ema_decay", "precision", "seed"),
)
"""Options of a stage that trains, those that a reader looks for first."""


def part_text(value: Mapping[str, Any]) -> str:
    """A part with its numbers and words: 'muon (lr 0.02, momentum 0.95)'."""
    inner = ", ".join(f"{k} {_text(v)}" for k, v in value.items() if k != "name" and _is_set(v))
    return f"{value['name']} ({inner})" if inner and value["name"] != "transformer" else str(value["name"])


def _is_set(value: Any) -> bool:
    """Whether a setting is worth a place: not off, not empty, not a list."""
    return value not in (None, False, "", 0, 0.0, "none") and not isinstance(value, list)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return part_text(value) if "name" in value else ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,}" if isinstance(value, int) else f"{value:g}" if isinstance(value, float) else str(value)


def made_by(request: Mapping[str, Any], environment: Mapping[str, Any], artifacts: Artifacts) -> list[tuple[str, str]]:
    """The head of the page: command, date, version. request: of the report's folder."""
    rows = []
    if recipe := request.get("recipe"):
        rows.append(("command", shlex.join(["feeb", "run", recipe, *(word for text in request.get("overrides", ()) for word in ("--set", text))])))
    if artifacts:
        rows.append(("finished", datetime.fromtimestamp(max(a.manifest["finished"] for a in artifacts.values()), UTC).strftime("%Y-%m-%d %H:%M UTC")))
    version = dict(environment_rows(environment)).get("feeb")
    return rows + ([("feeb", version)] if version else [])


def stage_rows(artifacts: Artifacts, root: str, page: Path | None = None) -> list[dict[str, Any]]:
    """The finished stages, in execution order: stage, seconds, share, fingerprint, path (relative to the workspace), size, and links
    to its folder and files, relative to the folder `page`."""
    total = sum(a.manifest["seconds"] for a in artifacts.values()) or 1.0
    rows = []
    for stage, artifact in artifacts.items():
        seconds = artifact.manifest["seconds"]
        rows.append(
            {
                "stage": stage,
                "seconds": seconds,
                "time": duration(seconds),
                "share": seconds / total,
                "fingerprint": artifact.fingerprint,
                "path": os.path.relpath(artifact.path, root),
                "links": [] if page is None else _links(artifact.path, page),
                "created": artifact.manifest.get("created", "")[:16].replace("T", " "),
                "size": byte_size(sum(f["size"] for f in artifact.manifest["files"].values())),
            }
        )
    return rows


def _links(folder: Path, page: Path) -> list[tuple[str, str]]:
    """(text, address) of the files of a stage that one opens: its recipe, its log, its metrics."""
    files = {"recipe": "recipe.json", "log": "log.txt", "metrics": "metrics.jsonl", "manifest": "manifest.json"}
    return [(text, quote(os.path.relpath(folder / name, page))) for text, name in files.items() if (folder / name).exists()]


def part_rows(artifacts: Artifacts) -> list[dict[str, str]]:
    """Every part that a stage used: kind, part, version, stages, origin."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, artifact in artifacts.items():
        for part in artifact.manifest["plugins"]:
            row = rows.setdefault((part["kind"], part["part"]), {**part, "stages": []})
            row["stages"].append(stage)
    return [{**row, "stages": ", ".join(row["stages"])} for row in rows.values() if row["kind"] != "stages" or not row["part"].startswith("feeb/")]


def packages(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The packages that parts come from, with their versions: ['feeb 0.1.0', 'feeb-newidea 0.2']."""
    return list(dict.fromkeys(f"{row['part'].partition('/')[0]} {row['version']}" for row in rows))


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine and package versions, as (name, value)."""
    rows = [
        ("feeb", f"{environment.get('feeb', '')} {str(environment.get('commit', ''))[:10]}{' with local changes' if environment.get('dirty') else ''}".strip())
    ]
    rows += [("Python", str(environment.get("python", ""))), ("platform", str(environment.get("platform", ""))), ("CPUs", str(environment.get("cpus", "")))]
    rows += [(name, version) for name, version in (environment.get("packages") or {}).items()]
    return [(name, value) for name, value in rows if value]


def recipe_yaml(recipe: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 110
    stream = io.StringIO()
    yaml.dump(dict(recipe), stream)
    return stream.getvalue()
