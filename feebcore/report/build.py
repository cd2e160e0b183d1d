"""Puts a report together: figures in both modes, the page, and a summary for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact
from feebcore.files import write_atomic, write_json
from feebcore.report import facts, figures, probe_figures
from feebcore.report.page import Picture, render
from feebcore.report.style import DARK, LIGHT, Theme, png, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = {
    "training": ("Training", "Thin line: every logged step; thick line: running mean. Points: loss on held-out text that was never trained on."),
    "residual_stream": (
        "Inside the model",
        "The stream that blocks add to, in root mean square: growth from block to block is usual, growth without end over training is not. "
        "Bars: how large the values are that attention and feedforward add, block by block.",
    ),
    "gradients": (
        "Gradients and updates",
        "A layer whose gradient vanishes learns nothing. Dashed: an update of a thousandth of the weights a step, a usual size at the peak rate.",
    ),
    "logits": (
        "Logits",
        "On the same text every time. Entropy starts near the logarithm of the vocabulary and falls; logits that grow without end come before a run that breaks. "
        "Text that repeats itself far more than the training text goes round in circles.",
    ),
    "expert_load": (
        "Experts",
        "How evenly tokens are spread over the experts of each layer. Entropy 1 is an even spread; 1 on the right, dashed, is an expert's fair share.",
    ),
    "throughput": ("Speed of training", "The share of what a plain matrix product reaches on the same machine, and where the rest of the time went."),
    "sweep": (
        "Scaling law",
        "Each color is one budget of training FLOPs, spent on models of different size; lines are the fitted law. "
        "The diamond was predicted before the cell was run, the star is what it reached.",
    ),
    "reinforcement": (
        "Reinforcement learning",
        "Reward is on training prompts; accuracy on held-out prompts, before and after, is the result. Low entropy means that the policy has made up its mind.",
    ),
    "evaluation": ("Before and after", "The same benchmarks on every model of the run. Whiskers are 95 % intervals."),
    "stage_times": ("Time per stage", "Seconds of work, earlier interrupted attempts included."),
}
PROBES = ("residual_stream", "gradients", "logits", "repetition", "expert_load", "throughput")


def build_report(
    artifacts: Mapping[str, Artifact], folder: Path, recipe: Mapping[str, Any], environment: Mapping[str, Any], tick: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write report.html, figures/*.png and summary.json into `folder`; returns the metrics of the stage.

    artifacts: by stage name, whichever there are. recipe: the resolved one. tick: called with (done, total).
    """
    pictures = draw_all(artifacts, tick)
    (folder / "figures").mkdir(exist_ok=True)
    for picture in pictures:
        write_atomic(folder / "figures" / f"{picture.name}.png", picture.light)
    root = str(folder.absolute().parents[1])
    cards, sentences = facts.cards(artifacts), facts.sentences(artifacts)
    environment_rows = facts.environment_rows(environment)
    page = render(
        [p for p in pictures if p.name != "stage_times"],
        title=str(recipe.get("name") or "Report"),
        lead=str(recipe.get("description") or ""),
        cards=cards,
        sentences=sentences,
        samples=facts.sample_groups(artifacts),
        first_batch=facts.first_batch(artifacts),
        answers=facts.answer_tables(artifacts),
        stages=facts.stage_rows(artifacts, root),
        parts=facts.part_rows(artifacts),
        environment=environment_rows,
        environment_line=", ".join(f"{n} {v}" for n, v in environment_rows if n in ("Python", "torch", "CPUs")),
        recipe=facts.recipe_yaml(recipe) if recipe else "",
    )
    write_atomic(folder / "report.html", page)
    summary = {"cards": [dataclasses.asdict(c) for c in cards], "sentences": [dataclasses.asdict(s) for s in sentences]}
    write_json(folder / "summary.json", summary | {"metrics": {stage: a.metrics for stage, a in artifacts.items()}})
    return {"report": "report.html", "figures": len(pictures)}


def draw_all(artifacts: Mapping[str, Artifact], tick: Callable[[int, int], None] = lambda done, total: None) -> list[Picture]:
    """Every figure that the artifacts have data for, in both modes."""
    logs = {stage: facts.read_optional(artifacts, stage, "metrics.jsonl") for stage in ("pretrain", "sft", "rl")}
    probes = {name: facts.read_optional(artifacts, "pretrain", f"probes/{name}.jsonl") for name in PROBES}
    law = facts.read_optional(artifacts, "sweep", "law.json")
    bars = facts.evaluation_bars(artifacts)
    times = [(row["stage"], row["seconds"]) for row in facts.stage_rows(artifacts, "/")]
    drawings: dict[str, Callable[[Theme], Figure | None]] = {
        "training": lambda theme: figures.training(logs, theme),
        "residual_stream": lambda theme: probe_figures.residual_stream(probes["residual_stream"], theme),
        "gradients": lambda theme: probe_figures.gradients(probes["gradients"], theme),
        "logits": lambda theme: probe_figures.logits(probes["logits"], probes["repetition"], theme),
        "expert_load": lambda theme: probe_figures.expert_load(probes["expert_load"], theme),
        "throughput": lambda theme: probe_figures.throughput(probes["throughput"], theme),
        "sweep": lambda theme: figures.sweep(law, theme),
        "reinforcement": lambda theme: figures.reinforcement(logs["rl"], facts.metrics_of(artifacts, "rl"), theme),
        "evaluation": lambda theme: figures.evaluation(bars, theme),
        "stage_times": lambda theme: figures.stage_times(times, theme),
    }
    pictures = []
    for number, (name, draw) in enumerate(drawings.items()):
        tick(number, len(drawings))
        images = [_image(draw, theme) for theme in (LIGHT, DARK)]
        if images[0] is not None and images[1] is not None:
            heading, caption = CAPTIONS[name]
            pictures.append(Picture(name, heading, caption, images[0], images[1]))
    tick(len(drawings), len(drawings))
    return pictures


def _image(draw: Callable[[Theme], Figure | None], theme: Theme) -> bytes | None:
    with styled(theme):
        figure = draw(theme)
        return None if figure is None else png(figure)
