"""Builds a report: figures in light and dark mode, the HTML page, and a machine-readable summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact
from feebcore.files import read_json, write_atomic, write_json
from feebcore.report import facts, figures, probe_figures, sweep_figures, sweep_page, sweep_sections
from feebcore.report.figures import running_mean
from feebcore.report.page import Picture, picture, render
from feebcore.report.style import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "training": ("Training", ""),  # says what is there
    "optimization": ("Learning rate and gradient norm", "As logged, of every stage that trains; the learning rate is that of the first parameter group."),
    "residual_stream": (
        "Residual stream",
        "Root mean square of the residual stream. Growth with depth is normal; unbounded growth during training is not. "
        "Bars: magnitudes of the attention and feedforward outputs, per block.",
    ),
    "gradients": (
        "Gradients and updates",
        "Gradient norm per layer, and the norm of each update relative to the weights. Dashed: a ratio of 1e-3 per step, typical at the peak learning rate.",
    ),
    "logits": (
        "Logits",
        "Measured on the same text every time. Entropy starts near ln(vocabulary size) and falls. Logits that keep growing often precede divergence. "
        "Far more repeated 4-grams than in the training text means degenerate repetition.",
    ),
    "expert_load": (
        "Expert load",
        "Load balance of the experts, per layer. Left: normalized entropy, 1 is a uniform load. Right: maximum expert load relative to a uniform load (dashed).",
    ),
    "throughput": (
        "Throughput",
        "Training FLOP/s relative to the peak of the GPU's data sheet (MFU) or, elsewhere, to that of a measured matmul, time spent outside training steps, and peak memory.",
    ),
    "reinforcement": (
        "Reinforcement learning",
        "Mean reward on training prompts, and accuracy on held-out prompts before and after training. KL is measured against the frozen reference policy. Entropy near zero means an almost deterministic policy.",
    ),
    "evaluation": ("Evaluation", "The same benchmarks for every model of the recipe. Error bars are 95% confidence intervals."),
    "stage_times": ("Time per stage", "Wall-clock seconds per stage, including interrupted attempts."),
}
PROBES = ("residual_stream", "gradients", "logits", "repetition", "expert_load", "throughput")


def build_report(
    artifacts: Mapping[str, Artifact], folder: Path, recipe: Mapping[str, Any], environment: Mapping[str, Any], tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write report.html, figures/*.png and summary.json into `folder`; returns the metrics of the stage.

    artifacts: by stage name; any stage may be missing. recipe: the resolved recipe. tick: called with (done, total).
    """
    sweep = sweep_sections.sections(artifacts["sweep"].path) if "sweep" in artifacts else None
    pictures = [*draw_all(artifacts, tick), *(sweep_figures.pictures(sweep) if sweep else [])]
    (folder / "figures").mkdir(exist_ok=True)
    for made in pictures:
        write_atomic(folder / "figures" / f"{made.name}.png", made.png)
    request = read_json(folder / "request.json") if (folder / "request.json").exists() else {}
    root = str(folder.absolute().parents[1])
    cards, sentences = facts.cards(artifacts), facts.sentences(artifacts)
    environment_rows, parts = facts.environment_rows(environment), facts.part_rows(artifacts)
    page = render(
        [p for p in pictures if p.name != "stage_times"],
        sweep=sweep_page.values(sweep, pictures) if sweep else None,
        title=str(recipe.get("name") or "Report"),
        lead=str(recipe.get("description") or ""),
        cards=cards,
        sentences=sentences,
        samples=facts.sample_groups(artifacts),
        first_batch=facts.first_batch(artifacts),
        answers=facts.answer_tables(artifacts),
        stages=facts.stage_rows(artifacts, root, folder),
        settings=facts.settings(artifacts),
        made_by=facts.made_by(request, environment, artifacts),
        parts=parts,
        packages=facts.packages(parts),
        environment=environment_rows,
        environment_line=", ".join(f"{n} {v}" for n, v in environment_rows if n in ("Python", "torch", "CPUs")),
        recipe=facts.recipe_yaml(recipe) if recipe else "",
    )
    write_atomic(folder / "report.html", page)
    summary = {"cards": [dataclasses.asdict(c) for c in cards], "sentences": [dataclasses.asdict(s) for s in sentences]}
    write_json(folder / "summary.json", summary | {"metrics": {stage: a.metrics for stage, a in artifacts.items()}})
    return {"report": "report.html", "figures": len(pictures)}


def draw_all(artifacts: Mapping[str, Artifact], tick: Callable[[int, int], None] = lambda done, total: None) -> list[Picture]:
    """Every figure for which the artifacts hold data, those of a sweep aside."""
    logs = {stage: facts.read_optional(artifacts, stage, "metrics.jsonl") for stage in artifacts}
    probes = {name: facts.read_optional(artifacts, "pretrain", f"probes/{name}.jsonl") for name in PROBES}
    bars = facts.evaluation_bars(artifacts)
    times = [(row["stage"], row["seconds"]) for row in facts.stage_rows(artifacts, "/")]
    drawings: dict[str, Callable[[Theme], Figure | None]] = {
        "training": lambda theme: figures.training(logs, theme),
        "optimization": lambda theme: figures.optimization(logs, theme),
        "residual_stream": lambda theme: probe_figures.residual_stream(probes["residual_stream"], theme),
        "gradients": lambda theme: probe_figures.gradients(probes["gradients"], theme),
        "logits": lambda theme: probe_figures.logits(probes["logits"], probes["repetition"], theme),
        "expert_load": lambda theme: probe_figures.expert_load(probes["expert_load"], theme),
        "throughput": lambda theme: probe_figures.throughput(probes["throughput"], theme),
        "reinforcement": lambda theme: figures.reinforcement(logs.get("rl", []), facts.metrics_of(artifacts, "rl"), theme),
        "evaluation": lambda theme: figures.evaluation(bars, theme),
        "stage_times": lambda theme: figures.stage_times(times, theme),
    }
    pictures = []
    for number, (name, draw) in enumerate(drawings.items()):
        tick(number, len(drawings))
        heading, caption = CAPTIONS[name]
        if name == "training":
            caption = _training_caption([rows for stage, rows in logs.items() if stage != "rl"])
        if (made := picture(name, heading, caption, draw)) is not None:
            pictures.append(made)
    tick(len(drawings), len(drawings))
    return pictures


def _training_caption(logs: Sequence[figures.Rows]) -> str:
    """What stands for what in the loss curves of these logs."""
    validation = [row for rows in logs for row in rows if row.get("split") == "validation"]
    said = {
        "Thin line: loss at every logged step. Thick line: running mean.": any(
            running_mean(len(figures.column(rows, "loss", "train")[0])) > 1 for rows in logs
        ),
        "Circles: loss on a sample of the validation split.": any(not row.get("whole_split") for row in validation),
        "Diamond: loss on the whole validation split.": any(row.get("whole_split") for row in validation),
    }
    return " ".join(text for text, there in said.items() if there)
