"""Curves of training logs over each other: of the runs of `feeb plot`, and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from feebcore.errors import FeebError, did_you_mean
from feebcore.files import read_jsonl
from feebcore.report.figures import column, off_scale, running_mean, smoothed
from feebcore.report.style import Theme, new_figure, plain_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Against = Literal["step", "tokens", "flops", "time"]
LABELS = {"step": "step", "tokens": "training tokens", "flops": "training FLOPs", "time": "seconds of training"}
UNITS = {"loss": "loss (nats per token)", "nll": "loss (nats per token)", "lr": "learning rate", "grad_norm": "gradient norm", "bits_per_byte": "bits per byte"}


@dataclass(frozen=True)
class Curve:
    """A run's numbers: training and validation, each (x, y). color: which of the theme's; runs of one recipe share it."""

    name: str
    training: tuple[list[float], list[float]]
    validation: tuple[list[float], list[float]]
    color: int = -1


def curve_of(folder: Path, name: str, metric: str, against: Against = "step", metrics: Mapping[str, Any] | None = None, color: int = -1) -> Curve:
    """The curve of the run in `folder` from its metrics.jsonl. metrics: of its manifest, for FLOPs per token.

    Raises FeebError where the log lacks the metric, or what the axis needs.
    """
    rows = read_jsonl(folder / "metrics.jsonl")
    training, validation = column(rows, metric, "train"), column([r for r in rows if not r.get("whole_split")], metric, "validation")
    if not training[0] and not validation[0]:
        known = sorted({key for row in rows for key, value in row.items() if isinstance(value, int | float) and key != "step"})
        raise FeebError(f"{folder} has no log, so there is nothing to plot" if not rows else f"{folder} logs no {metric!r}; {did_you_mean(metric, known)}")
    if against == "step":
        return Curve(name, training, validation, color)
    key = {"tokens": "tokens", "flops": "tokens", "time": "elapsed"}[against]
    steps, values = column(rows, key, "train")
    if not steps:
        raise FeebError(f"{folder} logs no {key!r}, so it cannot be drawn against {against}; use --x step")
    scale = 1.0
    if against == "flops":
        if not (metrics or {}).get("flops") or not (metrics or {}).get("tokens"):
            raise FeebError(f"{folder}: its FLOPs are known when it is finished; use --x tokens")
        scale = metrics["flops"] / metrics["tokens"]  # type: ignore[index]
    at = lambda points: [float(v) * scale for v in np.atleast_1d(np.interp(points, [0.0, *steps], [0.0, *values]))]  # noqa: E731
    return Curve(name, (at(training[0]), training[1]), (at(validation[0]), validation[1]), color)


def draw_curves(curves: Sequence[Curve], metric: str, against: Against, theme: Theme, title: str = "") -> Figure:
    """One panel with every curve: thin as logged, thick as a running mean, validation with circles."""
    figure = new_figure(9.0, 4.6)
    axes = figure.subplots()
    plot_curves(axes, curves, metric, theme)
    axes.set(title=title or (UNITS.get(metric, metric)), xlabel=LABELS[against], ylabel=UNITS.get(metric, metric))
    return figure


def plot_curves(axes: Axes, curves: Sequence[Curve], metric: str, theme: Theme) -> None:
    """Draw into a panel. Of many curves only the running means are drawn."""
    named: set[str] = set()
    for number, curve in enumerate(curves):
        color = theme.series[(curve.color if curve.color >= 0 else number) % len(theme.series)]
        x, y = curve.training
        gid = curve.name if curve.name not in named else None
        label = gid
        if x:
            mean = smoothed(y)
            if running_mean(len(x)) > 1 and len(curves) <= 4:
                axes.plot(x, y, color=color, alpha=0.25, linewidth=0.9)
            axes.plot(x, mean, color=color, label=label, gid=curve.name, marker="o" if len(x) < 3 else None)
            label = None
        if curve.validation[0]:
            axes.plot(
                *curve.validation, color=color, marker="o", markersize=3.5, linewidth=1.0, linestyle=(0, (3, 2)), label=label, gid=f"{curve.name}, validation"
            )
        named.add(curve.name)
    values = [v for c in curves for v in (*c.training[1], *c.validation[1])]
    clip_top(axes, values, theme)
    plain_ticks(axes.xaxis)
    axes.margins(x=0.02)
    if len(named) > 1:
        axes.legend(loc="upper right", ncols=1 if len(named) < 8 else 2)


def clip_top(axes: Axes, values: Sequence[float], theme: Theme) -> None:
    """Limits from the lowest value to the 95th percentile of what is drawn, with a note where values lie above."""
    if len(values) < 20 or min(values) <= 0 or max(values) < 2 * min(values):
        return
    low, top = min(values), float(np.quantile(values, 0.95))
    if max(values) > top + 0.35 * (top - low):
        axes.set_ylim(low - 0.06 * (top - low), top + 0.06 * (top - low))
        off_scale(axes, values, theme)
