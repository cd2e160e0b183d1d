"""Figures of the probes' measurements during training (rows of probes/*.jsonl); None without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from feebcore.report.figures import Rows, column, panels, stack_labels, whole_steps
from feebcore.report.style import Theme, byte_size, end_label, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = ("< 0.01", "0.01–0.1", "0.1–1", "1–10", "10–100", "> 100")


def residual_stream(rows: Rows, theme: Theme) -> Figure | None:
    """RMS of the residual stream by depth and by step, and magnitudes of the sublayer outputs. rows: residual_stream.jsonl."""
    rows = [r for r in rows if r.get("blocks")]
    if not rows:
        return None
    last = rows[-1]["blocks"]
    added = [kind for kind in ("attention", "feedforward") if any(b.get(kind) for b in last)]
    figure = new_figure(9.0, 3.6 + (1.5 + 0.28 * len(last) if added else 0.0))
    grid = figure.subplots(2 if added else 1, 2, squeeze=False, gridspec_kw={"height_ratios": [3.0, 1.3 + 0.28 * len(last)][: 2 if added else 1]})
    _by_depth(grid[0][0], rows, theme)
    _by_layer(grid[0][1], [(r["step"], [b.get("after") for b in r["blocks"]]) for r in rows], theme, [str(i) for i in range(len(last))])
    grid[0][1].set(title="Residual stream after each block", xlabel="step", ylabel="RMS")
    for axes, kind in zip(grid[1] if added else (), added, strict=False):
        _histograms(axes, [b.get(kind) for b in last], theme)
        axes.set(title=f"{kind.capitalize()} output, step {rows[-1]['step']}", xlabel="fraction of values by magnitude")
    for axes in grid[1][len(added) :] if added else ():
        axes.remove()
    if added:
        handles, names = grid[1][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=6, handlelength=1.0, columnspacing=1.4)
    return figure


def _by_depth(axes: Axes, rows: Rows, theme: Theme) -> None:
    """The residual stream along the depth, at the first, a middle and the last logged step."""
    shown = list(dict.fromkeys([0, len(rows) // 2, len(rows) - 1]))
    labels: list[tuple[float, str, Any]] = []
    deepest = 0.0
    for i, number in enumerate(shown):
        places = [place for k, block in enumerate(rows[number]["blocks"]) for place in _places(k, block)]
        finite = [(x, y) for x, y in places if _finite(y)]
        if not finite:
            continue
        color = theme.ramp(i / max(1, len(shown) - 1))
        axes.plot(*zip(*finite, strict=True), color=color, marker="o", markersize=3.5, gid=f"step {rows[number]['step']:,}")
        labels.append((finite[-1][1], f"step {rows[number]['step']:,}", color))
        deepest = max(deepest, finite[-1][0])
    _log_if_wide(axes, [y for r in rows for k, b in enumerate(r["blocks"]) for _, y in _places(k, b)])
    _label_ends(axes, deepest, labels)
    axes.set(title="Residual stream by depth", xlabel="block", ylabel="RMS")
    whole_steps(axes)


def _places(number: int, block: Mapping[str, Any]) -> list[tuple[float, Any]]:
    between = block.get("between") or []
    inside = [(number + (i + 1) / (len(between) + 1), size) for i, size in enumerate(between)]
    return [(number, block.get("before")), *inside, (number + 1, block.get("after"))]


def _histograms(axes: Axes, adds: Sequence[Mapping[str, Any] | None], theme: Theme) -> None:
    """One stacked bar per block: the share of values in each of six magnitude bins."""
    for layer, add in enumerate(adds):
        left = 0.0
        for k, share in enumerate((add or {}).get("histogram") or []):
            width = 100 * (share or 0.0)
            axes.barh(layer, width, left=left, height=0.72, color=theme.ramp(k / (len(BINS) - 1)), label=BINS[k] if layer == 0 else None, gid=BINS[k])
            left += width
    axes.set_yticks(range(len(adds)), [f"block {i}" for i in range(len(adds))])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100], ["0%", "50%", "100%"])


def gradients(rows: Rows, theme: Theme) -> Figure | None:
    """Gradient norms, and updates relative to weights, by layer. rows: gradients.jsonl."""
    rows = [r for r in rows if r.get("layers")]
    if not rows:
        return None
    names = [short(layer["layer"]) for layer in rows[-1]["layers"]]
    moved = any(layer.get("update") is not None for r in rows for layer in r["layers"])
    figure = new_figure(9.0, 3.6)
    left, *rest = panels(figure, 2 if moved else 1, [1.0, 1.0])
    _by_layer(left, [(r["step"], [layer.get("gradient") for layer in r["layers"]]) for r in rows], theme, names)
    left.set(title="Gradient norm", xlabel="step", ylabel="norm after clipping")
    for axes in rest:
        _by_layer(axes, [(r["step"], [_ratio(layer) for layer in r["layers"]]) for r in rows], theme, names)
        axes.axhline(1e-3, color=theme.muted, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        axes.set(title="Update-to-weight ratio", xlabel="step", ylabel="‖update‖ / ‖weights‖")
    return figure


def _ratio(layer: Mapping[str, Any]) -> float | None:
    update, weight = layer.get("update"), layer.get("weight")
    return update / weight if _finite(update) and _finite(weight) and weight else None


def short(layer: str) -> str:
    """'stack.blocks.3' as '3'; other layers keep their names."""
    return layer.rpartition(".")[2] if layer.rpartition(".")[2].isdigit() else layer.replace("_", " ")


def _by_layer(axes: Axes, history: Sequence[tuple[float, Sequence[Any]]], theme: Theme, names: Sequence[str]) -> None:
    """One line per layer over steps: blocks in sequential colors, first and last labeled; other layers by name."""
    numbered = [name for name in names if name.isdigit()]
    others = [name for name in names if not name.isdigit()]
    labels: list[tuple[float, str, Any]] = []
    for k, name in enumerate(names):
        line = [(step, values[k]) for step, values in history if k < len(values) and _finite(values[k])]
        if not line:
            continue
        block = name in numbered
        place = numbered.index(name) if block else others.index(name)
        color = theme.ramp(place / max(1, len(numbered) - 1)) if block else theme.series[(1, 3, 4, 5)[place % 4]]
        axes.plot(
            *zip(*line, strict=True),
            color=color,
            linewidth=1.5,
            linestyle="-" if block else (0, (5, 2)),
            marker="o" if len(history) == 1 else None,
            gid=f"block {name}" if block else name,
        )
        if not block or place in (0, len(numbered) - 1):
            labels.append((line[-1][1], f"block {name}" if block else name, color))
    _log_if_wide(axes, [v for _, values in history for v in values])
    _label_ends(axes, max((step for step, _ in history), default=0), labels)
    whole_steps(axes)
    axes.margins(x=0.02)


def _label_ends(axes: Axes, x: float, labels: Sequence[tuple[float, str, Any]]) -> None:
    """`stack_labels`, also on a logarithmic axis."""
    if axes.get_yscale() != "log":
        stack_labels(axes, x, labels)
        return
    bottom, top = (math.log(limit) for limit in axes.get_ylim())
    placed = -math.inf
    for y, text, color in sorted(labels, key=lambda item: item[0]):
        placed = max(bottom, math.log(y), placed + 0.075 * (top - bottom))
        axes.annotate(text, (x, math.exp(placed)), xytext=(8, 0), textcoords="offset points", color=color, va="center", fontsize=9, annotation_clip=False)


def _log_if_wide(axes: Axes, values: Sequence[Any]) -> None:
    """Use a logarithmic axis where values span more than a factor of five; at most four decades, so that a value that
    decays to zero does not fill the axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = [v for v in values if _finite(v) and v > 0]
    if positive and max(positive) > 5 * min(positive):
        bottom = max(min(positive), 1e-4 * max(positive))
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(0.8 * bottom, 1.25 * max(positive))
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if max(positive) < 300 * bottom else (1.0,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def logits(rows: Rows, repetition: Rows, theme: Theme) -> Figure | None:
    """Quantiles of the logits, predictive entropy, and repetition in sampled text. rows: logits.jsonl; repetition:
    repetition.jsonl; either may be empty."""
    fans = [(r["step"], r["quantiles"]) for r in rows if r.get("quantiles") and all(_finite(q) for q in r["quantiles"])]
    loops = {kind: column([{"step": r["step"], "v": r[kind]["repeated"]} for r in repetition if kind in r], "v") for kind in ("greedy", "sampled", "text")}
    drawings = [draw for draw, known in ((_fan, fans), (_certainty, fans), (_loops, loops["greedy"][0])) if known]
    if not drawings:
        return None
    figure = new_figure(9.0, 3.4)
    for axes, draw in zip(panels(figure, len(drawings), [1.0, 1.0, 1.0]), drawings, strict=True):
        draw(axes, {"fans": fans, "rows": rows, "loops": loops}, theme)
        axes.set_xlabel("step")
        whole_steps(axes)
        axes.margins(x=0.02)
    return figure


def _fan(axes: Axes, data: Mapping[str, Any], theme: Theme) -> None:
    steps = [step for step, _ in data["fans"]]
    quantiles = [[q[k] for _, q in data["fans"]] for k in range(len(data["fans"][0][1]))]
    middle = len(quantiles) // 2
    for k in range(middle):
        axes.fill_between(steps, quantiles[k], quantiles[-1 - k], color=theme.series[0], alpha=0.12 + 0.1 * k, linewidth=0)
    axes.plot(steps, quantiles[middle], color=theme.series[0], gid="median")
    axes.set(title="Logits", ylabel="median, 50%, 98%, all")


def _certainty(axes: Axes, data: Mapping[str, Any], theme: Theme) -> None:
    axes.set(title="Entropy and logsumexp", ylabel="nats per token")
    labels = []
    for number, key in ((1, "entropy"), (2, "logsumexp")):
        steps, values = column(data["rows"], key)
        if values:
            axes.plot(steps, values, color=theme.series[number], marker="o" if len(values) == 1 else None, gid=key)
            labels.append((values[-1], key, theme.series[number]))
            stop = steps[-1]
    if labels:
        stack_labels(axes, stop, labels)


def _loops(axes: Axes, data: Mapping[str, Any], theme: Theme) -> None:
    labels = []
    for number, (kind, (steps, values)) in zip((1, 0, 2), data["loops"].items(), strict=True):
        if values:
            shares = [100 * v for v in values]
            axes.plot(steps, shares, color=theme.series[number], marker="o", markersize=3, gid={"text": "training text"}.get(kind, kind))
            labels.append((shares[-1], {"text": "training text"}.get(kind, kind), theme.series[number]))
    axes.set(title="Repeated 4-grams", ylabel="% of 4-grams", ylim=(-4, 104))
    stack_labels(axes, data["loops"]["greedy"][0][-1], labels)


def expert_load(rows: Rows, theme: Theme) -> Figure | None:
    """Normalized entropy of the expert load and maximum expert load, per layer. rows: expert_load.jsonl."""
    rows = [r for r in rows if r.get("layers")]
    if not rows:
        return None
    names = [short(layer["layer"]) for layer in rows[-1]["layers"]]
    figure = new_figure(9.0, 3.4)
    for axes, key in zip(panels(figure, 2, [1.0, 1.0]), ("entropy", "largest"), strict=True):
        _by_layer(axes, [(r["step"], [layer.get(key) for layer in r["layers"]]) for r in rows], theme, names)
        axes.axhline(1.0, color=theme.muted, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        axes.set(xlabel="step")
        axes.set(
            **{"entropy": {"title": "Load balance", "ylabel": "entropy / ln E"}, "largest": {"title": "Maximum expert load", "ylabel": "load / uniform load"}}[
                key
            ]
        )
    return figure


def throughput(rows: Rows, theme: Theme) -> Figure | None:
    """MFU or matmul utilization, overheads and memory. rows: throughput.jsonl."""
    (steps, shares), title = column(rows, "mfu"), "MFU"
    if not steps:
        (steps, shares), title = column(rows, "matmul_utilization"), "Matmul utilization"
    if not steps:
        return None
    shares = within_peak(shares)
    figure = new_figure(9.0, 3.0)
    speed, lost, memory = panels(figure, 3, [1.2, 1.0, 1.0])
    marker = "o" if len(steps) < 3 else None
    speed.plot(steps, [100 * v for v in shares], color=theme.series[0], marker=marker, gid=title)
    speed.set(title=title, ylabel="% of peak", ylim=(0, 110 * max(*shares, 1e-9)))
    for number, key, name in ((1, "data_wait", "data loading"), (2, "outside", "validation, checkpoints")):
        x, values = column(rows, key)
        lost.plot(x, [100 * v for v in values], color=theme.series[number], marker=marker, label=name, gid=name)
    lost.set(title="Overhead", ylabel="% of time")
    lost.set_ylim(0, max(1.0, 1.25 * lost.get_ylim()[1]))
    lost.legend(loc="upper left", handlelength=1.2)
    for number, key, name in ((0, "memory", "process"), (3, "device_memory", "device")):
        x, values = column(rows, key)
        if values:
            memory.plot(x, values, color=theme.series[number], marker=marker, gid=name)
            end_label(memory, x[-1], values[-1], name, theme.series[number])
    memory.set(title="Peak memory", ylabel="bytes")
    memory.set_ylim(0, 1.1 * memory.get_ylim()[1])
    memory.yaxis.set_major_formatter(lambda value, position: byte_size(value))
    for axes in (speed, lost, memory):
        axes.set_xlabel("step")
        whole_steps(axes)
        axes.margins(x=0.02)
    return figure


def within_peak(utilization: Sequence[float]) -> list[float]:
    """Shares of the peak. Training that was faster than the measured peak shows that the measurement was disturbed: then the fastest
    interval is the peak."""
    return [value / max(1.0, *utilization) for value in utilization]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
