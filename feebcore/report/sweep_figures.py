"""The figures of a sweep, from its sections. Each function returns a matplotlib figure, or None without data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.report.figures import panels
from feebcore.report.page import Picture, picture
from feebcore.report.style import Theme, end_label, new_figure, plain_log_ticks, with_unit
from feebcore.report.sweep_sections import COUNTS, Sections, minimum_ends, place_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PLACES = 6  # of a learning-rate probe, that are drawn


def pictures(of: Sections) -> list[Picture]:
    """Those for which there is data, in the order of the page."""
    drawings: dict[str, tuple[str, str, Callable[[Theme], Figure | None]]] = {
        "sweep_isoflop": ("IsoFLOP curves", ISOFLOP, lambda theme: isoflop(of, theme)),
        "sweep_predictions": ("Predicted before it ran, against measured", PARITY, lambda theme: parity(of, theme)),
        "sweep_residuals": ("Residuals", RESIDUALS, lambda theme: residuals(of, theme)),
        "sweep_rollouts": ("Rollouts", ROLLOUTS, lambda theme: rollouts(of, theme)),
        "sweep_lr_probe": ("Learning-rate probe", PROBE, lambda theme: lr_probe(of, theme)),
    }
    made = (picture(name, heading, caption, draw) for name, (heading, caption, draw) in drawings.items())
    return [p for p in made if p is not None]


ISOFLOP = (
    "Left: every color is one budget of training FLOPs, spent on models of different sizes; lines are the fitted law, diamonds the minima of the runs' own "
    "parabolas with 95% intervals, stars held-out runs. Right: the minima against the budget, and the best size by the law."
)
PARITY = "On the dashed line a prediction is right. Bars are the 95% intervals that were registered before the run started. Gray: the runs of the final fit."
RESIDUALS = (
    "Predicted over measured loss of the fitted runs. Dotted: two robust standard deviations. A trend in either panel means that the law's form is off there."
)
ROLLOUTS = (
    "The same law, fitted again without the dearest runs, against what those runs measured. Dashed: twice the root mean square error per factor e of "
    "FLOPs, by which intervals are widened."
)
PROBE = "Loss against the multiple of the recipe's learning rates, at each place. Vertical line: the best multiple there."


def isoflop(of: Sections, theme: Theme) -> Figure | None:
    """Runs, fitted law and minima along each budget; the best size against the budget."""
    data = of["isoflop"]
    if not data["runs"]:
        return None
    interior = [m for m in data["minima"] if not m["problem"] and m["size"] is not None]
    figure = new_figure(9.0, 4.4)
    left, *rest = panels(figure, 2 if len(interior) > 1 else 1, [1.5, 1.0])
    budgets = sorted({run["budget"] for run in data["runs"]})
    colors = {b: theme.ramp(i / max(1, len(budgets) - 1)) for i, b in enumerate(budgets)}
    curves = {c["budget"]: c for c in data["curves"]}
    for budget in budgets:
        own = sorted((r["N"], r["loss"], r["heldout"]) for r in data["runs"] if r["budget"] == budget)
        fitted, held = [r[:2] for r in own if not r[2]], [r[:2] for r in own if r[2]]
        name = with_unit(budget, "FLOPs")
        if budget in curves:
            left.plot(curves[budget]["size"], curves[budget]["loss"], color=colors[budget], linewidth=1.4, alpha=0.75)
        if fitted:
            line = "none" if budget in curves else ":"
            left.plot(*zip(*fitted, strict=True), marker="o", markersize=6, linestyle=line, linewidth=1, color=colors[budget], zorder=4, gid=name)
        if held:
            star: dict[str, Any] = {"marker": "*", "markersize": 14, "markeredgecolor": theme.background, "markeredgewidth": 0.8}
            left.plot(*zip(*held, strict=True), **star, linestyle="none", color=theme.series[1], zorder=7, gid=f"{name}, held out")
        end_label(left, *(fitted or held)[-1], name, colors[budget])
    for m in interior:
        _minimum(left, m, colors.get(m["budget"], theme.muted), theme)
    _limits(left, [r["loss"] for r in data["runs"]])
    _log_axis(left.xaxis)
    left.margins(x=0.1)
    left.set(title="Runs and fitted law" if curves else "Runs", xlabel=_size_label(of), ylabel="validation loss (nats per token)")
    for right in rest:
        _best_sizes(right, of, interior, colors, theme)
    return figure


def _minimum(axes: Axes, m: Mapping[str, Any], color: Any, theme: Theme) -> None:
    if ends := minimum_ends(m):
        axes.plot(list(ends), [m["loss"]] * 2, color=color, linewidth=1.4, zorder=5)
    axes.plot(m["size"], m["loss"], marker="D", markersize=7, markerfacecolor=theme.background, markeredgecolor=color, linestyle="none", zorder=6)


def _best_sizes(axes: Axes, of: Sections, interior: Sequence[Mapping[str, Any]], colors: Mapping[float, Any], theme: Theme) -> None:
    for m in interior:
        if ends := minimum_ends(m):
            axes.plot([m["budget"]] * 2, list(ends), color=colors.get(m["budget"], theme.muted), linewidth=1.4)
    budgets = [m["budget"] for m in interior]
    edge: dict[str, Any] = {"markerfacecolor": theme.background, "markeredgecolor": theme.series[0]}
    axes.plot(budgets, [m["size"] for m in interior], marker="D", markersize=6, linestyle="none", **edge, zorder=5, gid="minimum of the runs")
    if allocation := of["isoflop"]["allocation"]:
        along = np.array([min(budgets), max(budgets)])
        line = allocation["coefficient"] * along ** allocation["exponent"]
        axes.plot(along, line, color=theme.series[0], linewidth=1.4, gid=f"C^{allocation['exponent']:.2f} through the minima")
    best = [(c["budget"], c["size"][int(np.argmin(c["loss"]))]) for c in of["isoflop"]["curves"] if 0 < int(np.argmin(c["loss"])) < len(c["loss"]) - 1]
    if best:
        axes.plot(*zip(*best, strict=True), color=theme.series[1], linewidth=1.4, linestyle="--", marker="o", markersize=3.5, gid="best size by the law")
    _log_axis(axes.xaxis)
    _log_axis(axes.yaxis)
    axes.margins(0.08)
    axes.set(title="Best size", xlabel="training FLOPs", ylabel=_size_label(of))


def parity(of: Sections, theme: Theme) -> Figure | None:
    """Registered predictions against what was measured."""
    rows = [row for row in of["predictions"]["runs"] if row["error"] is not None and not row["begun"]]
    if not rows:
        return None
    figure = new_figure(9.0, 4.6)
    axes = figure.subplots()
    fitted = [(r["loss"] * math.exp(r["residual"]), r["loss"]) for r in of["residuals"]]
    if fitted:
        axes.plot(
            *zip(*sorted(fitted), strict=True), marker="o", markersize=4, linestyle="none", color=theme.muted, alpha=0.45, zorder=2, gid="runs of the fit"
        )
    groups = {"predicted before it ran": ("o", 6, theme.series[0], False), "held-out run": ("*", 14, theme.series[1], True)}
    for name, (marker, size, color, heldout) in groups.items():
        own = sorted((r["predicted"], r["measured"], r["low"], r["high"]) for r in rows if r["heldout"] is heldout)
        for _, measured, low, high in own:
            if low is not None and high is not None:
                axes.plot([low, high], [measured] * 2, color=color, linewidth=1.3, alpha=0.8, zorder=3)
        if own:
            places = [r[0] for r in own], [r[1] for r in own]
            edge: dict[str, Any] = {"markeredgecolor": theme.background, "markeredgewidth": 0.8} if heldout else {}
            axes.plot(*places, marker=marker, markersize=size, linestyle="none", color=color, **edge, zorder=5 + heldout, gid=name)
    span = [v for r in rows for v in (r["predicted"], r["measured"], r["low"], r["high"]) if v is not None] + [v for pair in fitted for v in pair]
    pad = 0.04 * (max(span) - min(span) or max(span))
    ends = min(span) - pad, max(span) + pad
    axes.plot(ends, ends, color=theme.muted, linewidth=1, linestyle="--", zorder=1)
    axes.set(xlabel="predicted loss (nats per token)", ylabel="measured loss", xlim=ends, ylim=ends)
    return figure


def residuals(of: Sections, theme: Theme) -> Figure | None:
    """Relative residuals of the fitted runs against FLOPs and against N / N*; outliers by name."""
    rows = of["residuals"]
    if not rows:
        return None
    ridge = [row for row in rows if row["off_ridge"] is not None]
    figure = new_figure(9.0, 3.6)
    left, *rest = panels(figure, 2 if ridge else 1, [1.0, 1.0])
    _residual_panel(left, [(row["flops"], row) for row in rows], of, theme)
    left.set(title="Against compute", xlabel="training FLOPs", ylabel="predicted / measured - 1 (%)")
    for right in rest:
        _residual_panel(right, [(math.exp(row["off_ridge"]), row) for row in ridge], of, theme)
        right.set(title="Against size", xlabel="N / N*, the best size of its FLOPs by the law")
    return figure


def _residual_panel(axes: Axes, places: Sequence[tuple[float, Mapping[str, Any]]], of: Sections, theme: Theme) -> None:
    axes.axhline(0.0, color=theme.muted, linewidth=1)
    if scatter := of["scatter"]:
        for side in (-1, 1):
            axes.axhline(side * 200 * scatter, color=theme.muted, linewidth=1, linestyle=":")
    for name, outlier, color in (("fitted run", False, theme.series[0]), ("outlier", True, theme.series[1])):
        own = sorted((x, 100 * math.expm1(row["residual"])) for x, row in places if row["outlier"] is outlier)
        if own:
            axes.plot(*zip(*own, strict=True), marker="o", markersize=5.5, linestyle="none", color=color, alpha=0.85, gid=name)
    for x, row in places:
        if row["outlier"]:
            axes.annotate(row["name"], (x, 100 * math.expm1(row["residual"])), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
    _log_axis(axes.xaxis)
    axes.margins(x=0.08, y=0.12)


def rollouts(of: Sections, theme: Theme) -> Figure | None:
    """Errors of the runs that were left out and predicted, against reach."""
    rows = of["rollouts"]["runs"]
    if not rows:
        return None
    figure = new_figure(9.0, 3.6)
    axes = figure.subplots()
    axes.axhline(0.0, color=theme.muted, linewidth=1)
    for number, cut in enumerate(dict.fromkeys(row["cut"] for row in rows)):
        own = sorted((row["reach"], 100 * math.expm1(row["error"])) for row in rows if row["cut"] == cut)
        axes.plot(*zip(*own, strict=True), marker="o", markersize=5.5, linestyle="none", color=theme.series[number], gid=f"top {cut:.3g}x left out")
    farthest = max(max(row["reach"] for row in rows), 1.2)
    if slope := of["rollouts"]["error_per_reach"]:
        reach = np.geomspace(1.0, farthest, 40)
        for side in (-1, 1):
            name: dict[str, Any] = {"gid": "widening of intervals"} if side > 0 else {}
            axes.plot(reach, side * 200 * slope * np.log(reach), color=theme.muted, linewidth=1.2, linestyle="--", **name)
    _log_axis(axes.xaxis)
    axes.margins(x=0.06, y=0.12)
    axes.set(xlabel="reach: FLOPs over those of the dearest run that was fitted", ylabel="predicted / measured - 1 (%)")
    return figure


def lr_probe(of: Sections, theme: Theme) -> Figure | None:
    """Loss against the factor of the learning rates at each place, with its parabola and the factor of least loss."""
    places = (of["lr_probe"] or {}).get("places", [])[:MOST_PLACES]
    if not places:
        return None
    across = min(2, len(places))
    down = math.ceil(len(places) / across)
    figure = new_figure(9.0, 0.4 + 2.9 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat[len(places) :]:
        axes.remove()
    for axes, place in zip(grid.flat, places, strict=False):
        runs = [(run["factor"], run["loss"]) for run in place["tried"] if run["loss"] is not None]
        axes.plot(*zip(*runs, strict=True), marker="o", markersize=6, linestyle="none", color=theme.series[0], zorder=4, gid="run")
        factors = np.geomspace(min(min(r[0] for r in runs), place["best"]) / 1.2, max(max(r[0] for r in runs), place["best"]) * 1.2, 60)
        if None not in place["curve"]:
            axes.plot(factors, np.exp(np.polyval(place["curve"][::-1], np.log(factors))), color=theme.series[0], linewidth=1.3, alpha=0.7, gid="parabola")
        axes.axvline(place["best"], color=theme.series[1], linewidth=1.3, linestyle="--")
        _log_axis(axes.xaxis)
        axes.set_xticks([run["factor"] for run in place["tried"]], [f"{run['factor']:g}" for run in place["tried"]])
        axes.margins(y=0.12)
        axes.set(title=place_text(place), xlabel="multiple of the recipe's learning rates", ylabel="loss")
    return figure


def _size_label(of: Sections) -> str:
    return f"parameters N ({COUNTS[of['parameter_count']]})"


def _log_axis(axis: Any) -> None:
    axis.axes.set_xscale("log") if axis.axis_name == "x" else axis.axes.set_yscale("log")
    plain_log_ticks(axis)


def _limits(axes: Axes, losses: Sequence[float]) -> None:
    """From the losses of runs, so that a law's curve that leaves them does not decide."""
    pad = 0.07 * (max(losses) - min(losses) or 1.0)
    axes.set_ylim(min(losses) - pad, max(losses) + pad)
