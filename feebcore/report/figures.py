"""The figures of a report. Each function takes plain rows and returns a matplotlib figure, or None without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.report.style import Theme, new_figure, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
NAMES = {"pretrain": "base model", "sft": "after SFT", "rl": "after RL"}


def training(logs: Mapping[str, Rows], theme: Theme) -> Figure | None:
    """Training and validation loss of every stage that logs one, at most three panels. logs: rows of metrics.jsonl by stage."""
    shown = {stage: rows for stage, rows in list(logs.items()) if stage != "rl" and column(rows, "loss", "train")[0]}
    shown = dict(list(shown.items())[:3])
    if not shown:
        return None
    figure = new_figure(9.0, 3.5)
    for axes, (stage, rows) in zip(panels(figure, len(shown), [1.6, 1.0, 1.0]), shown.items(), strict=True):
        steps, loss = column(rows, "loss", "train")
        if running_mean(len(loss)) > 1:
            axes.plot(steps, loss, color=theme.series[0], alpha=0.28, linewidth=1.0)
        smooth = smoothed(loss)
        axes.plot(steps, smooth, color=theme.series[0], gid="training")
        labels = [(smooth[-1], "training", theme.series[0])]
        val_rows = [r for r in rows if r.get("split") == "validation" and not r.get("whole_split")]
        val_steps, val = column(val_rows, "loss", "validation")
        if val:
            axes.plot(val_steps, val, color=theme.series[1], marker="o", markersize=3.5, linewidth=1.2, gid="validation sample")
            labels.append((val[-1], "validation", theme.series[1]))
        whole = [r for r in rows if r.get("split") == "validation" and r.get("whole_split") and r.get("loss") is not None]
        if whole:
            place = [whole[-1]["step"]], [whole[-1]["loss"]]
            axes.plot(*place, marker="D", markersize=6, color=theme.series[1], linestyle="none", clip_on=False, zorder=5, gid="full validation")
            labels.append((whole[-1]["loss"], "full validation", theme.series[1]))
        values = [*loss, *val, *(r["loss"] for r in whole)]
        top, low = float(np.quantile(loss, 0.98)) if len(loss) > 20 else max(loss), min(values)
        span = top - low or abs(top) or 1.0  # of a single row nothing is spanned
        axes.set_ylim(max(0.0, low - 0.08 * span), top + 0.05 * span)
        off_scale(axes, values, theme)
        stack_labels(axes, steps[-1], labels)
        axes.set(title=stage_title(stage), xlabel="step", ylabel="loss (nats per token)")
        whole_steps(axes)
        axes.margins(x=0.02)
    return figure


def optimization(logs: Mapping[str, Rows], theme: Theme) -> Figure | None:
    """Learning rate and gradient norm of every stage that logs them. logs: rows of metrics.jsonl by stage."""
    names = {"lr": "Learning rate", "grad_norm": "Gradient norm before clipping"}
    shown = {key: {s: column(rows, key, "train") for s, rows in logs.items() if column(rows, key, "train")[0]} for key in names}
    shown = {key: curves for key, curves in shown.items() if curves}
    if not shown:
        return None
    figure = new_figure(9.0, 3.0)
    for axes, (key, curves) in zip(panels(figure, len(shown), [1.0, 1.0]), shown.items(), strict=True):
        for number, (stage, (steps, values)) in enumerate(curves.items()):
            places = [step / steps[-1] for step in steps] if len(curves) > 1 else steps  # stages of other lengths, side by side
            axes.plot(
                places, values, color=theme.series[number % len(theme.series)], label=stage, gid=stage, linewidth=1.4, marker="o" if len(steps) < 3 else None
            )
        positive = [v for _, values in curves.values() for v in values if v > 0]
        if positive and max(positive) > 20 * float(np.quantile(positive, 0.05)):
            axes.set_yscale("log")
            plain_log_ticks(axes.yaxis)
        else:
            axes.set_ylim(bottom=0.0)
        axes.set(title=names[key], xlabel="fraction of the stage's steps" if len(curves) > 1 else "step", ylabel="lr" if key == "lr" else "norm")
        axes.margins(x=0.02)
        if len(curves) > 1:
            axes.legend(loc="best")
    return figure


def stage_title(stage: str) -> str:
    return {"pretrain": "Pretraining", "sft": "Supervised fine-tuning", "rl": "Reinforcement learning"}.get(stage, stage)


def off_scale(axes: Axes, values: Sequence[float], theme: Theme) -> None:
    """A note where values lie above the panel."""
    if max(values) > axes.get_ylim()[1]:
        text = f"↑ up to {max(values):.4g}, off scale"
        axes.annotate(text, (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", color=theme.muted, fontsize=8.5)


def reinforcement(rows: Rows, metrics: Mapping[str, Any], theme: Theme) -> Figure | None:
    """Reward with accuracy on held-out prompts, KL, entropy and completion length. rows: the stage's metrics.jsonl."""
    train = [r for r in rows if r.get("split", "train") == "train"]
    kinds = [
        ("reward", "Reward (training prompts)", "mean reward", 0),
        ("kl", "KL to reference policy", "nats per completion", 2),
        ("entropy", "Policy entropy", "nats per token", 3),
        ("length", "Completion length", "tokens", 4),
    ]
    kinds = [k for k in kinds if column(train, k[0])[0]]
    if not kinds:
        return None
    height = 5.6 if len(kinds) > 2 else 3.2
    figure = new_figure(9.0, height)
    grid = figure.subplots(2 if len(kinds) > 2 else 1, 2 if len(kinds) > 1 else 1, squeeze=False)
    for axes in grid.flat[len(kinds) :]:
        axes.remove()
    for axes, (key, title, label, number) in zip(grid.flat, kinds, strict=False):
        steps, values = column(train, key)
        color = theme.series[number]
        axes.plot(steps, values, color=color, alpha=0.28, linewidth=1.0)
        axes.plot(steps, smoothed(values), color=color, gid=label)
        axes.set(title=title, xlabel="step", ylabel=label)
        whole_steps(axes)
        if key != "reward":
            axes.set_ylim(bottom=min(0.0, *values) * 1.05, top=max(1e-3, *values) * 1.12)
            axes.margins(x=0.02)
    if kinds[0][0] == "reward":
        _held_out_accuracy(grid.flat[0], rows, metrics, column(train, "reward")[0], theme)
    return figure


def _held_out_accuracy(axes: Axes, rows: Rows, metrics: Mapping[str, Any], steps: Sequence[float], theme: Theme) -> None:
    """Accuracy on held-out prompts, sampled as in training: before, during and after training."""
    orange = theme.series[1]
    ends = [(steps[0] - 1, metrics.get("accuracy_before")), (steps[-1], metrics.get("accuracy_after"))]
    measured = [(x, a) for x, a in ends if isinstance(a, Mapping)]
    between = [(r["step"], r["accuracy"]) for r in rows if r.get("split") == "validation" and r.get("accuracy") is not None]
    line = sorted({**dict(between), **{x: a["value"] for x, a in measured}}.items())
    if not line:
        return
    axes.plot(
        *zip(*line, strict=True),
        color=orange,
        linewidth=1.2,
        linestyle=(0, (3, 2)),
        marker="o" if len(line) > 2 else None,
        markersize=3,
        gid="accuracy, held-out prompts",
    )
    for x, a in measured:
        axes.errorbar(
            [x], [a["value"]], [[a["value"] - a["low"]], [a["high"] - a["value"]]], fmt="o", markersize=6, color=orange, capsize=3, zorder=6, clip_on=False
        )
        first = x == line[0][0]
        below = first and a["low"] > 0.2
        axes.annotate(
            f"{100 * a['value']:.0f}%",
            (x, a["value"] if below else a["high"]),
            xytext=(8 if first else -4, -14 if below else 8),
            textcoords="offset points",
            ha="left" if first else "right",
            color=orange,
            fontsize=9.5,
            fontweight="bold",
        )
    low = max(a["value"] for _, a in measured) < 0.6 if measured else False
    place = {"xy": (0.02, 0.9), "ha": "left"} if low else {"xy": (0.98, 0.05), "ha": "right"}
    axes.annotate("accuracy, held-out prompts (95% CI)", xycoords="axes fraction", color=orange, fontsize=9, **place)  # type: ignore[arg-type]
    axes.set_title("Reward and held-out accuracy")
    axes.set_ylim(-0.03, 1.05)
    axes.margins(x=0.06)


def evaluation(bars: Rows, theme: Theme) -> Figure | None:
    """One panel per metric, one bar per model. bars: {title, percent, better, models: [(name, value, low, high)]}."""
    if not bars:
        return None
    across = min(2, len(bars))
    down = math.ceil(len(bars) / across)
    most = max(len(b["models"]) for b in bars)
    figure = new_figure(9.0, down * (1.15 + 0.42 * most))
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(bars) :]:
        axes.remove()
    colors = {"pretrain": theme.series[5], "sft": theme.series[4], "rl": theme.series[1]}
    for axes, bar in zip(grid.flat, bars, strict=False):
        scale, unit = (100.0, "%") if bar["percent"] else (1.0, "")
        for i, (model, value, low, high) in enumerate(bar["models"]):
            axes.barh(i, value * scale, height=0.58, color=colors.get(model, theme.series[0]))
            known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
            if known:
                axes.errorbar(
                    [value * scale],
                    [i],
                    xerr=[[max(0.0, value - low) * scale], [max(0.0, high - value) * scale]],
                    color=theme.text,
                    capsize=3,
                    linewidth=1.2,
                    fmt="none",
                )
            text = f"{value * scale:.1f}{unit}" if bar["percent"] else f"{value:.3f}"
            axes.annotate(
                text, ((high if known else value) * scale, i), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9.5, fontweight="bold"
            )
        axes.set_yticks(range(len(bar["models"])), [NAMES.get(s[0], s[0]) for s in bar["models"]])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        tops = [(s[3] if s[3] is not None and math.isfinite(s[3]) else s[1]) * scale for s in bar["models"]]
        axes.set_xlim(0, 118 if bar["percent"] else max(max(tops) * 1.22, 1e-9))
        if bar["percent"]:
            axes.set_xticks(range(0, 101, 25), [f"{t}%" for t in range(0, 101, 25)])
        axes.set_title(bar["title"])
        axes.set_xlabel(f"{bar['better']} is better")
        axes.tick_params(axis="y", labelcolor=theme.text)
    return figure


def stage_times(times: Sequence[tuple[str, float]], theme: Theme) -> Figure | None:
    """Wall-clock seconds per stage. times: (stage, seconds) in execution order."""
    if not times:
        return None
    figure = new_figure(9.0, 0.75 + 0.34 * len(times))
    axes = figure.subplots()
    longest = max(seconds for _, seconds in times) or 1.0
    for i, (_, seconds) in enumerate(times):
        axes.barh(i, seconds, height=0.6, color=theme.series[0], alpha=0.85)
        axes.annotate(duration(seconds), (seconds, i), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_yticks(range(len(times)), [name for name, _ in times])
    axes.tick_params(axis="y", labelcolor=theme.text)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.12)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds")
    return figure


def duration(seconds: float) -> str:
    """0.4 as '0.4 s', 92 as '1 min 32 s'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def column(rows: Rows, key: str, split: str | None = None) -> tuple[list[float], list[float]]:
    """Steps and finite values of `key`, optionally of one split."""
    pairs = [(r["step"], r[key]) for r in rows if (split is None or r.get("split") == split) and isinstance(r.get(key), int | float) and math.isfinite(r[key])]
    return [float(s) for s, _ in pairs], [float(v) for _, v in pairs]


def whole_steps(axes: Axes) -> None:
    """Integer ticks on the step axis."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, steps=[1, 2, 5, 10]))


def running_mean(count: int) -> int:
    """The number of rows in the running mean of `count` rows."""
    return max(1, count // 20)


def smoothed(values: Sequence[float]) -> np.ndarray:
    """A centered running mean over about 5% of the rows; shorter windows at the edges."""
    width = running_mean(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low, high = np.maximum(0, index - width // 2), np.minimum(len(values), index + width // 2 + 1)
    return (sums[high] - sums[low]) / (high - low)


def panels(figure: Figure, count: int, ratios: Sequence[float]) -> list[Axes]:
    """`count` axes in one row; a single one takes the whole width."""
    return list(figure.subplots(1, count, squeeze=False, gridspec_kw={"width_ratios": list(ratios)[:count]}).flat)


def stack_labels(axes: Axes, x: float, labels: Sequence[tuple[float, str, Any]]) -> None:
    """Label lines at their ends, shifted where labels would overlap."""
    bottom, top = axes.get_ylim()
    gap = 0.075 * (top - bottom)
    placed = -math.inf
    for y, text, color in sorted(labels, key=lambda item: item[0]):
        placed = max(y, placed + gap)
        axes.annotate(text, (x, placed), xytext=(8, 0), textcoords="offset points", color=color, va="center", fontsize=9, annotation_clip=False)
