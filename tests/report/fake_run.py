"""Artifact folders as a complete quickstart writes them, with plausible made-up numbers, to render reports from."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.artifacts import Artifact, StageOutput, commit

STAGES = ("download", "tokenizer", "shard", "pretrain", "sweep", "sft", "rl", "evaluate")
SECONDS = dict(zip(STAGES, (4.1, 8.7, 12.9, 96.4, 88.2, 31.0, 58.5, 63.8), strict=True))
ENVIRONMENT = {
    "feeb": "0.1.0",
    "commit": "9f3c2a71d0b4",
    "dirty": False,
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "cpus": 2,
    "packages": {"torch": "2.13.0", "numpy": "2.3.1", "zarr": "3.1.6", "prefect": "3.8.8"},
}
RECIPE = {
    "name": "quickstart",
    "description": "Pretraining on the standard library's source, a scaling law, and GRPO on sorting.",
    "seed": 0,
    "stages": [*STAGES, "report"],
    "pretrain": {"max_steps": 1400, "optimizer": {"name": "muon", "lr": 0.02}, "architecture": {"name": "transformer", "d_model": 256}},
}
PARTS = {
    "download": [("sources", "stdlib"), ("filters", "dedup_exact")],
    "tokenizer": [("tokenizers", "bpe")],
    "pretrain": [("architectures", "transformer"), ("attentions", "mha"), ("optimizers", "muon"), ("schedules", "wsd"), ("objectives", "next_token")],
    "sweep": [("architectures", "transformer"), ("planners", "isoflop"), ("laws", "chinchilla")],
    "sft": [("tasks", "sort"), ("objectives", "completion_only")],
    "rl": [("tasks", "sort"), ("algorithms", "grpo")],
    "evaluate": [("benchmarks", "bits_per_byte"), ("benchmarks", "python_parses"), ("benchmarks", "task_accuracy")],
}


def make_artifacts(root: Path, stages: tuple[str, ...] = STAGES) -> dict[str, Artifact]:
    """Finished artifacts of these stages in the workspace `root`."""
    rng = np.random.default_rng(0)
    artifacts = {}
    for i, stage in enumerate(stages):
        fingerprint = f"{i + 10:012x}"
        out = StageOutput(_folder(root, stage, fingerprint))
        metrics, section = globals()[f"_{stage}"](out.path, rng)
        out.close()
        plugins = [{"kind": s, "part": f"feeb/{n}", "revision": "1", "version": "0.1.0", "origin": "models"} for s, n in PARTS.get(stage, [])]
        artifact = commit(
            out,
            stage=stage,
            name="quickstart",
            fingerprint=fingerprint,
            identity={},
            metrics=metrics,
            section=section,
            inputs={},
            plugins=plugins,
            environment=ENVIRONMENT,
            started=time.time() - SECONDS[stage],
        )
        artifacts[stage] = artifact
    return artifacts


def _folder(root: Path, stage: str, fingerprint: str) -> Path:
    folder = root / stage / f"quickstart-{fingerprint}"
    folder.mkdir(parents=True)
    return folder


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def share(value: float, n: int = 512) -> dict[str, Any]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 1e-4) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half), "n": n}


def _download(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"documents": 1712, "bytes": 31_204_118, "val_documents": 168, "val_bytes": 3_011_504, "dropped": {"dedup_exact": 14}}, {}


def _tokenizer(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"vocab_size": 4096, "bytes_per_token": 3.41}, {}


def _shard(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"train_tokens": 8_270_114, "val_tokens": 883_017, "bytes_per_token": 3.41, "tokens_per_second": 901_000}, {}


def _pretrain(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for step in range(10, 1401, 10):
        loss = 3.9 + 4.4 * math.exp(-step / 90) + 0.9 * math.exp(-step / 700)
        rows.append({"step": step, "split": "train", "loss": loss + rng.normal(0, 0.07), "lr": 0.02, "tokens": step * 4096})
        if step % 200 == 0:
            rows.append({"step": step, "split": "validation", "loss": loss + 0.1, "bits_per_byte": (loss + 0.1) / 2.36})
    rows.append({"step": 1400, "split": "validation", "loss": 4.21, "bits_per_byte": 1.782, "whole_split": True})
    _lines(folder / "metrics.jsonl", rows)
    text = ' __init__(self, name, *, default=None):\n        """Initialize the <b>parser</b> & its names."""\n        self._name = name\n        if default is not None:\n            self._default = default'
    _lines(folder / "samples.jsonl", [{"step": 1400, "prompt": p, "text": text} for p in ("def", "class Reader:\n    def", "import os\n\ndef")])
    _probes(folder / "probes", rng)
    counts = {"total": 3_410_944, "non_embedding": 2_361_344, "matmul": 3_409_920}
    return {
        "val_bits_per_byte": 1.782,
        "final_loss": 4.11,
        "steps": 1400,
        "tokens": 5_734_400,
        "tokens_per_second": 62_100.0,
        "parameters": counts,
        "seconds": 92.3,
    }, {}


def _probes(folder: Path, rng: Any) -> None:
    """What the probes write for a model of six blocks."""
    folder.mkdir()
    (folder / "first_batch.txt").write_text('The first batch: 16 sequences of 256 tokens.\n--- sequence 0 ---\n    0 0 <bos>    312 "import"\n')
    histogram = lambda scale: np.histogram(abs(rng.normal(0, scale, 4000)), [0, 0.01, 0.1, 1, 10, 100, np.inf])[0] / 4000  # noqa: E731
    streams, gradients, logits, repetition, throughput = [], [], [], [], []
    for step in (0, *range(100, 1401, 100)):
        grown = 1 - math.exp(-step / 500)
        sizes = [1.0 + (0.1 + 0.9 * grown) * layer**1.3 for layer in range(7)]
        blocks = [
            {
                "layer": layer,
                "before": sizes[layer],
                "between": [0.6 * sizes[layer] + 0.4 * sizes[layer + 1]],
                "after": sizes[layer + 1],
                "largest": 9 * sizes[layer + 1],
                "attention": {"rms": 0.3, "histogram": histogram(0.1 + 0.3 * grown).tolist()},
                "feedforward": {"rms": 0.5, "histogram": histogram(0.1 + layer * grown).tolist()},
            }
            for layer in range(6)
        ]
        streams.append({"step": step, "blocks": blocks})
        spread = 0.2 + 4 * grown
        logits.append(
            {
                "step": step,
                "quantiles": [spread * q for q in (-4.1, -2.3, -0.7, 0.0, 0.6, 2.6, 5.2)],
                "logsumexp": 8.3 + 3 * grown,
                "entropy": 8.3 - 4.2 * grown,
                "top1": 0.01 + 0.3 * grown,
                "accuracy": 0.3 * grown,
                "finite": True,
            }
        )
        if step % 200 == 0:
            shares = {"greedy": 0.9 - 0.4 * grown, "sampled": 0.02 + 0.05 * grown, "text": 0.06}
            repetition.append({"step": step} | {k: {"repeated": v} for k, v in shares.items()} | {"degenerate": []})
        if step:
            names = ["embedding", *(f"stack.blocks.{i}" for i in range(6)), "final_norm", "lm_head"]
            layers = [
                {"layer": name, "gradient": (0.05 + 0.3 / (i + 1)) * rng.lognormal(0, 0.1), "weight": 20.0 + i, "update": 0.05 / (i + 2) + 0.02 * (1 - grown)}
                for i, name in enumerate(names)
            ]
            gradients.append({"step": step, "layers": layers})
            row = {
                "tokens_per_second": 62_100.0,
                "matmul_utilization": 0.31 + rng.normal(0, 0.01),
                "data_wait": 0.002,
                "outside": 0.03,
                "memory": 1.1e9 + 1e5 * step,
            }
            throughput.append({"step": step, **row})
    for name, rows in {"residual_stream": streams, "gradients": gradients, "logits": logits, "repetition": repetition, "throughput": throughput}.items():
        _lines(folder / f"{name}.jsonl", rows)


def law_document(rng: Any, identified: bool = True) -> dict[str, Any]:
    loss = lambda n, d: 2.2 + 95.0 / n**0.36 + 280.0 / d**0.37  # noqa: E731
    points, residuals = [], []
    for budget in (4e11, 1.2e12, 4e12):
        for n in (45_000, 120_000, 300_000, 720_000):
            d = budget / (6 * n)
            noise = rng.normal(0, 0.006)
            residuals.append(-noise)
            sizes = {"total": n + 500_000, "non_embedding": n, "matmul": n + 250_000}
            points.append(
                {"name": f"{budget:.0e}-{n}", **sizes, "tokens": d, "flops": budget, "loss": loss(n, d) * math.exp(noise), "budget": budget, "heldout": False}
            )
    n, budget = 900_000, 1.6e13
    d = budget / (6 * n)
    held = {
        "name": "held",
        "N": n,
        "D": d,
        "flops": budget,
        "predicted": loss(n, d),
        "low": loss(n, d) * 0.97,
        "high": loss(n, d) * 1.035,
        "measured": loss(n, d) * 1.012,
    }
    held |= {"relative_error": 0.0119, "nearest": "x", "nearest_loss": loss(720_000, 4e12 / 6 / 720_000), "nearest_error": 0.064}
    curves = []
    for b in (4e11, 1.2e12, 4e12, 1.6e13):
        size = np.geomspace(30_000, 1_080_000, 60) if b < 1e13 else np.geomspace(600_000, 1_350_000, 60)
        values = [loss(s, b / 6 / s) for s in size]
        curves.append(
            {"budget": b, "heldout": b > 1e13, "size": size.tolist(), "loss": values, "low": [v * 0.98 for v in values], "high": [v * 1.02 for v in values]}
        )
    flags = (
        []
        if identified
        else ["not_identified: the intervals of E and beta are wider than their values", "isoflop_edges: 1 of 3 budgets have no interior minimum"]
    )
    law = {
        "form": "chinchilla",
        "E": 2.2,
        "A": 95.0,
        "B": 280.0,
        "alpha": 0.36,
        "beta": 0.37,
        "intervals": {"E": [0.4, 2.9]},
        "flags": flags,
        "parameter_count": "non_embedding",
    }
    parameters = {key: law[key] for key in ("E", "A", "B", "alpha", "beta")} | {"a": 0.507}
    rollouts = [{"name": p["name"], "reach": 3.0, "error": 0.01 * rng.normal(), "off_ridge": 0.0, "cut": 10**0.5, "loss": p["loss"]} for p in points[-4:]]
    rows = [
        {"name": p["name"], "N": p["non_embedding"], "D": p["tokens"], "flops": p["flops"], "budget": p["budget"], "loss": p["loss"], "residual": r}
        | {"weight": 1.0, "off_ridge": math.log(p["non_embedding"] / 2e5), "outlier": i == 3}
        for i, (p, r) in enumerate(zip(points, residuals, strict=True))
    ]
    minima = [
        {"budget": b, "size": 2e5, "tokens": 3e5, "loss": 4.5, "num_points": 4, "problem": "", "ln_size_sd": 0.1, "ln_loss_sd": 0.01} for b in (4e11, 1.2e12)
    ]
    tried = [{"name": f"probe1-x{f:g}", "factor": f, "loss": 4.5 + 0.1 * math.log(f) ** 2} for f in (0.5, 1.0, 2.0)]
    place = {"N": 5e4, "D": 1e6, "flops": 4e11, "best": 1.0, "problem": "", "curve": [math.log(4.5), 0.0, 0.02], "tried": tried}
    widening = {"error_per_reach": 0.01, "reach": 4.0, "half_width": 0.03, "without_rollouts": 0.02}
    forecast = {"flops": 1e14, "N": 2e6, "D": 8e6, "reach": 6.0, "loss": 3.5, "low": 3.4, "high": 3.6, "flags": [], "interval": widening}
    return {
        "law": law,
        "fit": {"residuals": residuals, "parameters": parameters, "rollouts": rollouts, "scatter": 0.006},
        "points": points,
        "error_per_reach": 0.01,
        "residuals": rows,
        "heldout": [held],
        "curves": curves,
        "isoflop": {"minima": minima, "allocation": {"exponent": 0.5, "coefficient": 0.3, "num_minima": 2, "low": 0.4, "high": 0.6}, "problem": ""},
        "lr_probe": {"places": [place], "ridge": {"c0": 0.0, "c1": 0.1, "c2": -0.1, "N": 5e4, "D": 1e6}},
        "forecast": forecast | {"learning_rates": {"factor": 1.1, "options": {"optimizer.lr": 0.022}}},
    }


def _sweep(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    document = law_document(rng, identified=False)
    (folder / "law.json").write_text(json.dumps(document))
    return {"law": document["law"], "heldout_relative_error": 0.0119, "nearest_run_error": 0.064, "runs": 13, "flops": 2.2e13}, {}


def _sft(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rows = [{"step": s, "split": "train", "loss": 0.5 + 2.6 * math.exp(-s / 40) + rng.normal(0, 0.05)} for s in range(10, 301, 10)]
    _lines(folder / "metrics.jsonl", rows)
    return {"steps": 300, "examples": 38_400, "final_loss": 0.51, "accuracy_sampled": share(0.48), "accuracy_greedy": share(0.55)}, {}


def _rl(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "split": "validation", "accuracy": 0.48, "accuracy_greedy": 0.55}]
    for step in range(1, 81):
        rise = 1 - math.exp(-step / 22)
        rows.append(
            {
                "step": step,
                "split": "train",
                "reward": 0.48 + 0.34 * rise + rng.normal(0, 0.04),
                "kl": max(0.0, 0.9 * rise + rng.normal(0, 0.05)),
                "entropy": 0.42 - 0.3 * rise + abs(rng.normal(0, 0.01)),
                "length": 6.0 + rng.normal(0, 0.1),
            }
        )
    rows.append({"step": 80, "split": "validation", "accuracy": 0.81, "accuracy_greedy": 0.86})
    _lines(folder / "metrics.jsonl", rows)
    rollouts = [
        {"step": s, "prompt": "sort 72914=", "completion": c, "answer": "12479", "reward": r}
        for s, c, r in ((1, "12497", 0.0), (1, "12479", 1.0), (80, "12479", 1.0))
    ]
    _lines(folder / "rollouts.jsonl", rollouts)
    metrics = {"accuracy_before": share(0.48), "accuracy_after": share(0.81), "accuracy_greedy_before": share(0.55), "accuracy_greedy_after": share(0.86)}
    return {**metrics, "reward_first": 0.47, "reward_last": 0.82, "kl": 0.9, "entropy": 0.12, "steps": 80, "rollouts": 10_240}, {
        "algorithm": {"name": "grpo"},
        "task": {"name": "sort"},
    }


def _evaluate(folder: Path, rng: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    bits = {"pretrain": (1.782, 1.71, 1.86), "sft": (2.104, 2.01, 2.2), "rl": (2.131, 2.04, 2.23)}
    parses, sampled = {"pretrain": 0.61, "sft": 0.42, "rl": 0.4}, {"pretrain": 0.0, "sft": 0.48, "rl": 0.81}
    results: Mapping[str, Any] = {
        "bits_per_byte": {s: {"bits_per_byte": {"value": v, "low": a, "high": b, "n": 168}} for s, (v, a, b) in bits.items()},
        "python_parses": {s: {"parses": share(v, 192)} for s, v in parses.items()},
        "task_accuracy": {s: {"sampled": share(v), "greedy": share(min(1.0, v * 1.06))} for s, v in sampled.items()},
    }
    about = {
        "bits_per_byte": {"title": "Validation loss, bits per byte", "better": "lower", "percent": False},
        "python_parses": {"title": "Valid Python functions", "better": "higher", "percent": True},
        "task_accuracy": {"title": "Accuracy on held-out sort problems", "better": "higher", "percent": True},
    }
    good = "\n\ndef get_default(self, name):\n    if name in self._data:\n        return self._data[name]\n    raise KeyError(name)"
    bad = "\n\ndef parse(line):\n    <script>alert('never runs')</script>\n    return ((line"
    functions = [{"prompt": t[: t.index("(") - 2], "text": t, "parses": p} for t, p in ((good, True), (bad, False)) * 3]
    problems = [{"prompt": "72914=", "completion": c, "answer": "12479", "reward": r} for c, r in (("12479", 1.0), ("12497", 0.0))]
    samples = {"python_parses": {"pretrain": functions}, "task_accuracy": {"sft": problems, "rl": problems}}
    for name, value in (("results", results), ("benchmarks", about), ("samples", samples)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return {"bits_per_byte": {s: v[0] for s, v in bits.items()}}, {}
