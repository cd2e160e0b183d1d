"""What a report says, taken from finished artifacts: headline cards, sentences in plain words, tables, samples.

Every number comes from a manifest or a result file; nothing is computed that a stage did not measure. Each stage may be
absent: then nothing is said about it.
"""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from feebcore.artifacts import Artifact
from feebcore.evaluate.benchmark import intervals
from feebcore.files import read_json, read_jsonl
from feebcore.report.figures import NAMES, duration
from feebcore.report.style import byte_size, compact

Artifacts = Mapping[str, Artifact]
ORDER = ("download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate")
MODELS = ("pretrain", "sft", "rl")


@dataclass(frozen=True)
class Card:
    """value: the number, large. label: what it is. note: what to compare it with."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Sentence:
    """topic: a word or two. text: one or two sentences. tone: 'good', 'bad', 'doubt' or ''."""

    topic: str
    text: str
    tone: str = ""


@dataclass
class SampleGroup:
    """Texts under one heading. items: {prompt, text, note, good} each; good: True, False or None (no verdict)."""

    title: str
    note: str = ""
    items: list[dict[str, Any]] = field(default_factory=list)


def percent(share: float) -> str:
    return f"{100 * share:.1f}\u00a0%" if 0 < share < 0.1 or 0.9 < share < 1 else f"{100 * share:.0f}\u00a0%"


def metrics_of(artifacts: Artifacts, stage: str) -> dict[str, Any]:
    return artifacts[stage].metrics if stage in artifacts else {}


def read_optional(artifacts: Artifacts, stage: str, name: str) -> Any:
    """A JSON or JSONL file of a stage; empty when stage or file is not there."""
    if stage not in artifacts or not (artifacts[stage].path / name).exists():
        return [] if name.endswith("jsonl") else {}
    path = artifacts[stage].path / name
    return read_jsonl(path) if name.endswith("jsonl") else read_json(path)


# --- headline cards ---------------------------------------------------------------------------------------------


def cards(artifacts: Artifacts) -> list[Card]:
    found = []
    pretrain, sweep, rl, download = (metrics_of(artifacts, s) for s in ("pretrain", "sweep", "rl", "download"))
    if (bits := pretrain.get("val_bits_per_byte")) is not None:
        found.append(Card(f"{bits:.3f}", "bits per byte", "on held-out text"))
    if pretrain.get("parameters"):
        counts = pretrain["parameters"]
        found.append(Card(compact(counts["total"]), "parameters", f"{compact(counts['non_embedding'])} without embeddings"))
    if pretrain.get("tokens"):
        rate = f"{compact(pretrain['tokens_per_second'])} a second" if pretrain.get("tokens_per_second") else ""
        found.append(Card(compact(pretrain["tokens"]), "training tokens", rate))
    speeds = [row["mfu"] for row in read_optional(artifacts, "pretrain", "probes/throughput.jsonl") if row.get("mfu") is not None]
    if speeds:
        found.append(Card(percent(statistics.median(speeds)), "of the machine's peak", "a matrix product is 100\u00a0%"))
    if (error := sweep.get("heldout_relative_error")) is not None:
        nearest = sweep.get("nearest_cell_error")
        found.append(Card(percent(error), "scaling-law error", f"nearest cell: {percent(nearest)}" if nearest is not None else "on the held-out cell"))
    before, after = rl.get("accuracy_before"), rl.get("accuracy_after")
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        found.append(Card(f"{percent(before['value'])} → {percent(after['value'])}", "task accuracy by RL", f"sampled, {after['n']} held-out prompts"))
    for bar in evaluation_bars(artifacts):
        if bar["benchmark"] == "python_parses":
            subject, value, *_ = bar["models"][0]
            found.append(Card(percent(value), "functions that parse", NAMES.get(subject, subject)))
    if "bytes" in download:
        found.append(Card(byte_size(download["bytes"]), "of text", f"{download['documents']:,} documents"))
    if artifacts:
        found.append(Card(duration(sum(a.manifest["seconds"] for a in artifacts.values())), "for all stages", f"{len(artifacts)} stages"))
    return found


def first_batch(artifacts: Artifacts, lines: int = 80) -> str:
    """The beginning of what probe first_batch wrote; empty when it did not look."""
    path = artifacts["pretrain"].path / "probes" / "first_batch.txt" if "pretrain" in artifacts else None
    if path is None or not path.is_file():
        return ""
    return "\n".join(path.read_text(encoding="utf-8").splitlines()[:lines])


# --- the verdict in words ---------------------------------------------------------------------------------------


def sentences(artifacts: Artifacts) -> list[Sentence]:
    return [s for say in (_text, _model, _law, _fine_tuning, _rl, _evaluation) for s in say(artifacts)]


def _text(artifacts: Artifacts) -> list[Sentence]:
    found = metrics_of(artifacts, "download")
    if "documents" not in found:
        return []
    vocabulary = metrics_of(artifacts, "tokenizer").get("vocab_size")
    tokenizer = f" A vocabulary of {vocabulary:,} turns them into {compact(_tokens(artifacts))} tokens." if vocabulary and _tokens(artifacts) else ""
    held = f"; {found['val_documents']:,} of them ({byte_size(found['val_bytes'])}) are held out by hash" if "val_documents" in found else ""
    return [Sentence("Text", f"{found['documents']:,} documents, {byte_size(found['bytes'])}{held}.{tokenizer}")]


def _tokens(artifacts: Artifacts) -> float:
    found = metrics_of(artifacts, "shard")
    return found.get("train_tokens", 0) + found.get("val_tokens", 0)


def _model(artifacts: Artifacts) -> list[Sentence]:
    found = metrics_of(artifacts, "pretrain")
    if "val_bits_per_byte" not in found:
        return []
    size = f"A model of {compact(found['parameters']['total'])} parameters" if found.get("parameters") else "The model"
    how = f" after {compact(found['tokens'])} tokens" if found.get("tokens") else ""
    time = f" in {duration(found['seconds'])}" if found.get("seconds") else ""
    return [Sentence("Pretraining", f"{size} needs {found['val_bits_per_byte']:.3f} bits for a byte of text it has never seen{how}{time}.")]


def _law(artifacts: Artifacts) -> list[Sentence]:
    found = metrics_of(artifacts, "sweep")
    if not found:
        return []
    said = []
    error, nearest = found.get("heldout_relative_error"), found.get("nearest_cell_error")
    if error is not None:
        fitted = (found.get("law") or {}).get("num_points") or "the"
        text = f"From {fitted} small runs the law predicted the loss of a larger one, before it was run, to within {percent(error)}."
        tone = ""
        if nearest is not None:
            better = error < nearest
            tone = "good" if better else "bad"
            text += f" Guessing the loss of the nearest run would have been {percent(nearest)} off, so the law {'was worth fitting' if better else 'did no better than that'}."
        said.append(Sentence("Scaling law", text, tone))
    flags = (found.get("law") or {}).get("flags") or []
    if flags:
        words = [f.partition(":")[2].strip() or f.replace("_", " ") for f in flags]
        said.append(Sentence("Doubts about the law", " ".join(w[:1].upper() + w[1:].rstrip(".") + "." for w in words), "doubt"))
    return said


def _fine_tuning(artifacts: Artifacts) -> list[Sentence]:
    found = metrics_of(artifacts, "sft")
    accuracy = found.get("accuracy_sampled", found.get("accuracy"))
    value = accuracy.get("value") if isinstance(accuracy, Mapping) else accuracy
    if value is None:
        return []
    return [
        Sentence(
            "Fine-tuning",
            f"After {found.get('examples', 0):,} solved examples the model gets {percent(value)} of held-out problems right, sampled at temperature 1.",
        )
    ]


def _rl(artifacts: Artifacts) -> list[Sentence]:
    found = metrics_of(artifacts, "rl")
    before, after = found.get("accuracy_before"), found.get("accuracy_after")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return []
    section = artifacts["rl"].manifest.get("section") or {}
    algorithm = str((section.get("algorithm") or {}).get("name", "reinforcement learning")).upper().replace("REINFORCEMENT LEARNING", "reinforcement learning")
    task = str((section.get("task") or {}).get("name", "")).replace("_", " ")
    cost = f" after {found['rollouts']:,} attempts" if found.get("rollouts") else ""
    on = f" on {task}" if task else ""
    change = f"from {percent(before['value'])} to {percent(after['value'])}"
    text = (
        f"{algorithm} moved held-out accuracy{on} {change}{cost}"
        if before["value"] != after["value"]
        else f"{algorithm} left held-out accuracy{on} at {percent(after['value'])}{cost}"
    )
    if after["low"] > before["high"]:
        return [Sentence("Reinforcement learning", f"{text}. The 95\u00a0% intervals do not overlap: it learned.", "good")]
    if after["high"] < before["low"]:
        return [Sentence("Reinforcement learning", f"{text}. The 95\u00a0% intervals do not overlap: it got worse.", "bad")]
    return [Sentence("Reinforcement learning", f"{text}. The 95\u00a0% intervals overlap, so {after['n']} prompts cannot tell whether it learned.", "doubt")]


def _evaluation(artifacts: Artifacts) -> list[Sentence]:
    said = []
    for bar in evaluation_bars(artifacts):
        values = {s[0]: s for s in bar["models"]}
        last = next((s for s in reversed(MODELS) if s in values and s != "pretrain"), None)
        if bar["benchmark"] not in ("bits_per_byte", "python_parses") or not last or "pretrain" not in values:
            continue
        old, new = values["pretrain"], values[last]
        apart = None not in (old[2], new[2]) and (new[2] > old[3] or new[3] < old[2])
        worse = (new[1] > old[1]) == (bar["better"] == "lower")
        show = percent if bar["percent"] else lambda v: f"{v:.3f}"
        topic, what = ("Python", "of sampled functions parse") if bar["benchmark"] == "python_parses" else ("text", "bits for a byte of held-out text")
        apart_words = "" if apart else " The intervals overlap."
        text = f"{NAMES[last][:1].upper()}{NAMES[last][1:]}: {show(new[1])} {what}; it was {show(old[1])} when pretrained.{apart_words}"
        said.append(Sentence(f"Its price in {topic}", text, "bad") if worse and apart else Sentence(f"{topic[:1].upper()}{topic[1:]}, afterwards", text))
    return said


# --- evaluation -------------------------------------------------------------------------------------------------


def evaluation_bars(artifacts: Artifacts) -> list[dict[str, Any]]:
    """One entry a benchmark and metric: benchmark, metric, title, percent, better, models [(name, value, low, high)]."""
    results, about = read_optional(artifacts, "evaluate", "results.json"), read_optional(artifacts, "evaluate", "benchmarks.json")
    bars = []
    for benchmark, models in results.items():
        said = about.get(benchmark, {})
        names = list(dict.fromkeys(metric for result in models.values() for metric in intervals(result)))
        for metric in names:
            rows = [(s, r[metric]) for s, r in models.items() if metric in r]
            title = said.get("title", benchmark) + (f", {metric}" if len(names) > 1 else "")
            bars.append(
                {
                    "benchmark": benchmark,
                    "metric": metric,
                    "title": title,
                    "percent": said.get("percent", False),
                    "better": said.get("better", "higher"),
                    "models": [(s, m["value"], m.get("low"), m.get("high")) for s, m in rows],
                }
            )
    return bars


# --- samples ----------------------------------------------------------------------------------------------------


def sample_groups(artifacts: Artifacts, each: int = 6) -> list[SampleGroup]:
    """Texts to read: of the pretrained model, sampled functions, and, where no table has them, RL attempts."""
    groups = []
    looks = read_optional(artifacts, "pretrain", "samples.jsonl")
    if looks:
        final = [r for r in looks if r.get("step") == looks[-1].get("step")][:each]
        items = [{"prompt": r["prompt"], "text": r["text"], "note": "", "good": None} for r in final]
        groups.append(SampleGroup("Text from the pretrained model", f"sampled at step {final[0].get('step')}; gray is the prompt", items))
    for benchmark, models in read_optional(artifacts, "evaluate", "samples.json").items():
        for subject, rows in models.items():
            title = f"{benchmark.replace('_', ' ').capitalize()}, {NAMES.get(subject, subject)}"
            if rows and "parses" in rows[0]:
                count = each if subject == "pretrain" else each // 2
                items = [
                    {"prompt": r["prompt"].strip("\n"), "text": r["text"].removeprefix(r["prompt"]), "note": "", "good": r["parses"]}
                    for r in _mixed(rows, "parses", count)
                ]
                groups.append(SampleGroup(f"Functions, {NAMES.get(subject, subject)}", "some that parse as Python and some that do not", items))
            elif rows and "completion" not in rows[0]:
                items = [{"prompt": str(r.get("prompt", "")), "text": str(r.get("text", "")), "note": "", "good": None} for r in rows[:each]]
                groups.append(SampleGroup(title, "", items))
    rollouts = read_optional(artifacts, "rl", "rollouts.jsonl")
    if rollouts and not answer_tables(artifacts):
        ends = [r for r in rollouts if r["step"] in (rollouts[0]["step"], rollouts[-1]["step"])]
        items = [{"prompt": r["prompt"], "text": r["completion"], "note": f"step {r['step']}", "good": (r.get("reward") or 0) >= 1} for r in ends[:each]]
        groups.append(SampleGroup("Attempts during reinforcement learning", "first and last step", items))
    return groups


def answer_tables(artifacts: Artifacts, most: int = 8) -> list[dict[str, Any]]:
    """The same held-out problems answered by each model: {title, models, rows: [{prompt, answer, cells: [{text, good}]}]}."""
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
        tables.append({"title": title, "models": [NAMES.get(s, s) for s in answered], "rows": rows})
    return tables


def _mixed(rows: Sequence[Mapping[str, Any]], key: str, count: int) -> list[Mapping[str, Any]]:
    """Good and bad ones both, where there are both."""
    good, bad = [r for r in rows if r[key]], [r for r in rows if not r[key]]
    half = min(len(good), max(count - len(bad), count // 2))
    return [*good[:half], *bad[: count - half]]


# --- what was used ----------------------------------------------------------------------------------------------


def stage_rows(artifacts: Artifacts, root: str) -> list[dict[str, Any]]:
    """The stages that ran, in order: stage, seconds, share, fingerprint, path (relative to the workspace), size."""
    total = sum(a.manifest["seconds"] for a in artifacts.values()) or 1.0
    rows = []
    for stage in [*(s for s in ORDER if s in artifacts), *(s for s in artifacts if s not in ORDER)]:
        artifact = artifacts[stage]
        seconds = artifact.manifest["seconds"]
        rows.append(
            {
                "stage": stage,
                "seconds": seconds,
                "time": duration(seconds),
                "share": seconds / total,
                "fingerprint": artifact.fingerprint,
                "path": os.path.relpath(artifact.path, root),
                "created": artifact.manifest.get("created", "")[:16].replace("T", " "),
                "size": byte_size(sum(f["size"] for f in artifact.manifest["files"].values())),
            }
        )
    return rows


def part_rows(artifacts: Artifacts) -> list[dict[str, str]]:
    """Every part that some stage used: kind, part, version, stages, origin."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for stage, artifact in artifacts.items():
        for part in artifact.manifest["plugins"]:
            row = found.setdefault((part["kind"], part["part"]), {**part, "stages": []})
            row["stages"].append(stage)
    return [{**row, "stages": ", ".join(row["stages"])} for row in found.values() if row["kind"] != "stages" or not row["part"].startswith("feeb/")]


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The machine and versions, in words."""
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
