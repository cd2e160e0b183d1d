"""page.md and page.html of a comparison of two laws: the verdict, both laws in the measured range and at the target, the paired ratios and the frontiers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.compare.law_report import columns, rows
from feebcore.errors import plural
from feebcore.report.page import Picture, chart_page, picture
from feebcore.report.style import Theme, new_figure
from feebcore.scaling.paired import EQUAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READING = (
    "Δ is the difference of the loss, candidate over baseline. The compute multiplier is the training FLOPs that the baseline needs for the candidate's loss, "
    "over those that both had."
)


def text(result: Mapping[str, Any], name: str, description: str, command: str, environment: Mapping[str, Any], pictures: Sequence[Picture]) -> str:
    """page.md. description: of the baseline's recipe; command: what makes the page."""
    lines = [
        f"# {name}",
        *(["", description] if description else []),
        *(["", f"    {command}"] if command else []),
        "",
        f"{_scale(result)} torch {environment['packages'].get('torch', '?')}, {environment['cpus']} CPUs, {environment['machine']}.",
        "",
        *(f"- {sentence}" for sentence in result["verdict"]),
        "",
        *(f"![{picture.heading}]({picture.name}.png)\n" for picture in pictures),
        "",
        "| " + " | ".join(columns(result)) + " |",
        "|" + "---|" * len(columns(result)),
        *("| " + " | ".join(row) + " |" for row in rows(result)),
        "",
        READING,
        "",
        *(f"- {note}" for note in (*result["notes"], *result["assumptions"])),
        "",
    ]
    return "\n".join(lines)


def html(result: Mapping[str, Any], name: str, description: str, command: str, pictures: list[Picture]) -> str:
    """page.html: the same with figures that one can zoom."""
    lead = " ".join(filter(None, [description, _scale(result)]))
    notes = [READING, *result["notes"], *result["assumptions"]]
    return chart_page(
        name, pictures, lead=lead, command=command, sentences=result["verdict"], table={"columns": columns(result), "rows": rows(result)}, notes=notes
    )


def _scale(result: Mapping[str, Any]) -> str:
    flops = [pair["flops"][0] for pair in result["pairs"]]
    span = f" from {min(flops):.3g} to {max(flops):.3g} FLOPs" if flops else ""
    return f"{result['candidate']} against {result['baseline']}: {plural(len(flops), 'pair')} of runs{span}."


def pictures(result: Mapping[str, Any]) -> list[Picture]:
    """result: as `feebcore.compare.law_report.make` gives it."""
    if not result["pairs"]:
        return []
    drawn = [
        picture(
            "figure",
            "Ratios and frontiers",
            "Left: every pair of runs, and the difference along the frontiers with its 95% interval; diamond: the target; gray: within "
            f"{100 * EQUAL:g}%. Right: all runs, and the loss of each law at its best size.",
            lambda theme: draw(result, theme),
        )
    ]
    return [p for p in drawn if p is not None]


def draw(result: Mapping[str, Any], theme: Theme) -> Figure:
    """Paired ratios over compute, and both frontiers."""
    figure = new_figure(10.0, 4.2)
    left, right = figure.subplots(1, 2)
    curve = (result["comparison"] or {"curve": []})["curve"]
    flops = [place["flops"] for place in curve]
    shown = [*flops, *(value for pair in result["pairs"] for value in pair["flops"])]
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlim(min(shown) / 1.2, max(shown) * 1.2)
        axes.set_xlabel("training FLOPs")
    _ratios(left, result, flops, curve, theme)
    _frontiers(right, result, flops, curve, theme)
    return figure


def _ratios(axes: Axes, result: Mapping[str, Any], flops: list[float], curve: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    name, color = result["candidate"], theme.series[1]
    axes.axhline(0.0, color=theme.muted, linewidth=1.0)
    pairs = result["pairs"]
    axes.fill_between(axes.get_xlim(), [-100 * EQUAL] * 2, [100 * EQUAL] * 2, color=theme.grid, alpha=0.6, linewidth=0)
    if curve and curve[0]["low"] is not None:
        low, high = ([_percent(place[end]) for place in curve] for end in ("low", "high"))
        axes.fill_between(flops, low, high, color=color, alpha=0.18, linewidth=0)
    axes.plot(flops, [_percent(place["difference"]) for place in curve], "-", color=color, label="along the frontiers", gid=f"{name}, along the frontiers")
    axes.plot(
        [pair["flops"][0] for pair in pairs],
        [_percent(pair["ratio"]) for pair in pairs],
        "o",
        markersize=5,
        color=color,
        alpha=0.6,
        markeredgewidth=0,
        label="pairs",
    )
    if result["comparison"] is not None:
        _diamond(axes, result["comparison"]["target"], color)
    axes.set_ylabel(f"Δ loss vs. {result['baseline']}, % (lower is better)")
    axes.set_title("Paired ratios")
    axes.legend()


def _diamond(axes: Axes, place: Mapping[str, Any], color: str) -> None:
    middle = _percent(place["difference"])
    ends = None if place["low"] is None else [[middle - _percent(place["low"])], [_percent(place["high"]) - middle]]
    axes.errorbar([place["flops"]], [middle], yerr=ends, fmt="D", markersize=6, color=color, capsize=4, linewidth=1.8)


def _frontiers(axes: Axes, result: Mapping[str, Any], flops: list[float], curve: Sequence[Mapping[str, Any]], theme: Theme) -> None:
    for side, (name, color, key) in enumerate(zip((result["baseline"], result["candidate"]), theme.series, ("first_loss", "second_loss"), strict=False)):
        pairs = result["pairs"]
        axes.plot([p["flops"][side] for p in pairs], [p["loss"][side] for p in pairs], "o", markersize=4, color=color, alpha=0.4, markeredgewidth=0)
        axes.plot(flops, [place[key] for place in curve], "-", color=color, label=name, gid=name)
    if curve and curve[0]["low"] is not None:
        low, high = ([place["first_loss"] * math.exp(place[end]) for place in curve] for end in ("low", "high"))
        axes.fill_between(flops, low, high, color=theme.series[1], alpha=0.18, linewidth=0)
    axes.set_ylabel("validation loss, nats per token")
    axes.set_title("Frontiers")
    axes.legend()


def _percent(ln_ratio: float) -> float:
    return float(100 * np.expm1(ln_ratio))
