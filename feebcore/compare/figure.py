"""The figures of a comparison: each variant's paired differences with their interval, the baseline's curve, the loss curves of its runs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feebcore.errors import FeebError
from feebcore.report.curves import curve_of, draw_curves
from feebcore.report.page import Picture, picture
from feebcore.report.style import Theme, new_figure, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def pictures(result: Mapping[str, Any]) -> list[Picture]:
    """The differences next to loss against compute, and the loss curves of every run. result: as `feebcore.compare.report.make` gives it."""
    named = [
        picture("figure", "Differences", "Shaded: differences below the smallest effect of interest.", lambda theme: draw(result, theme)),
        picture(
            "curves",
            "Loss curves",
            "Running mean of the training loss of every run; circles: loss on a sample of the validation split.",
            lambda theme: _curves(result, theme),
        ),
    ]
    return [p for p in named if p is not None]


def draw(result: Mapping[str, Any], theme: Theme) -> Figure:
    """Paired differences with their intervals, and loss against compute."""
    figure = new_figure(10.0, max(3.4, 1.8 + 0.7 * len(result["variants"])))
    left, right = figure.subplots(1, 2)
    _differences(left, result, theme)
    _against_compute(right, result, theme)
    return figure


def _curves(result: Mapping[str, Any], theme: Theme) -> Figure | None:
    """The training loss of the runs in pairs, a color a recipe."""
    names = [candidate["name"] for candidate in result["recipes"]]
    curves = []
    for run in sorted(result["runs"], key=lambda run: names.index(run["recipe"])):
        if run["role"] == "run" and run.get("path"):
            with contextlib.suppress(FeebError):  # a run whose recipe keeps no log
                curves.append(curve_of(Path(run["path"]), run["recipe"], "loss", color=names.index(run["recipe"])))
    return draw_curves(curves, "loss", "step", theme) if curves else None


def _differences(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    candidates = {candidate["name"]: candidate for candidate in result["recipes"]}
    base, effect = candidates[result["baseline"]], result["effect"]
    axes.axvline(0.0, color=theme.muted, linewidth=1.0)
    axes.axvspan(-effect, effect, color=theme.grid, alpha=0.5, zorder=0)
    for row, variant in enumerate(result["variants"]):
        color = theme.series[(row + 1) % len(theme.series)]
        pairs = zip(base["bits_per_byte"], candidates[variant["name"]]["bits_per_byte"], strict=True)
        values = [v - b for b, v in pairs if b is not None and v is not None]
        axes.plot(values, [row + 0.16] * len(values), "o", markersize=5, color=color, alpha=0.55, markeredgewidth=0)
        if variant["difference"] is not None:
            axes.errorbar(
                [variant["difference"]],
                [row - 0.1],
                xerr=[[variant["difference"] - variant["low"]], [variant["high"] - variant["difference"]]],
                fmt="D",
                markersize=6,
                color=color,
                capsize=4,
                linewidth=1.8,
            )
    axes.set_yticks(range(len(result["variants"])), [_label(variant) for variant in result["variants"]])
    axes.set_ylim(len(result["variants"]) - 0.4, -0.6)
    axes.set_xlabel(f"Δ bits per byte vs. {result['baseline']} (lower is better)")
    axes.set_title("Paired differences per seed, mean and 95% CI")
    axes.grid(axis="y", visible=False)


def _label(variant: Mapping[str, Any]) -> str:
    lost = variant["diverged"]
    return f"{variant['name']}\n{variant['kind']}" + (f"\n{lost} diverged" if lost else "")


def _against_compute(axes: Axes, result: Mapping[str, Any], theme: Theme) -> None:
    for row, candidate in enumerate(result["recipes"]):
        color = theme.series[row % len(theme.series)]
        losses = [loss for loss in candidate["bits_per_byte"] if loss is not None]
        axes.plot([candidate["flops"]] * len(losses), losses, "o", markersize=4, color=color, alpha=0.4, markeredgewidth=0)
        if candidate["mean"] is not None:
            axes.plot([candidate["flops"]], [candidate["mean"]], "D", markersize=7, color=color, label=candidate["name"], gid=candidate["name"])
    base = result["recipes"][0]
    curve = sorted((p["flops"], p["bits_per_byte"]) for p in result["curve"] if p["bits_per_byte"] is not None)
    if curve and base["mean"] is not None:
        curve = sorted([*curve, (base["flops"], base["mean"])])
        axes.plot(
            *zip(*curve, strict=True),
            "-",
            color=theme.series[0],
            linewidth=1.4,
            marker=".",
            markersize=7,
            label=f"{base['name']} at other budgets",
            gid=f"{base['name']} at other budgets",
        )
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
    axes.set_xlabel("training FLOPs per run")
    axes.set_ylabel("validation bits per byte")
    axes.set_title("Loss against compute")
    axes.legend()
