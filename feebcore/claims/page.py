"""The page of a study: its claims, what was seen, and every variant; Markdown and one figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feebcore.compare.verdict import p_text
from feebcore.errors import plural
from feebcore.report.style import LIGHT, Theme, compact, new_figure, png, styled
from feebcore.run.contracts import unchecked_note

COLUMNS = ("claim", "statement", "expectation", "measured", "verdict")


def text(result: Mapping[str, Any], command: str, environment: Mapping[str, Any]) -> str:
    """page.md. command: what makes the runs; environment: as feebcore.provenance describes it."""
    kinds = [claim["kind"] for claim in result["claims"]]
    counts = ", ".join(f"{kinds.count(kind)} {word}" for kind, word in (("agrees", "agree"), ("disagrees", "disagree"), ("cannot tell", "cannot be told")))
    lines = [
        f"# {result['name']}",
        "",
        result["description"],
        "",
        f"    {command}",
        "",
        f"{plural(len(result['claims']), 'claim')}: {counts}. {plural(len(result['variants']), 'variant')}, {plural(len(result['seeds']), 'seed')} each; {_scale(result)}.",
        f"torch {environment['packages'].get('torch', '?')}, {environment['cpus']} CPUs, {environment['machine']}.",
        "",
        "![Bits per byte of every variant](figure.png)",
        "",
        "## Claims",
        "",
        *(f"{note}\n" for note in unchecked_note(result["unchecked"])),
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *(_claim(claim) for claim in result["claims"]),
        "",
        *_reading(result),
        "",
        "## Variants",
        "",
        "| variant | parameters | validation bits per byte | Δ vs. first | final training loss | tokens/s | diverged |",
        "|---|---|---|---|---|---|---|",
        *(_variant(variant, result["variants"][0]) for variant in result["variants"]),
        "",
        "![Training loss of every variant over that of the first](curves.png)",
        "",
        f"± is the standard deviation over seeds. {result['measured']} Tokens/s are medians of runs that ran in parallel.",
        "",
    ]
    return "\n".join(lines)


def _scale(result: Mapping[str, Any]) -> str:
    tokens, sizes = result["tokens"], result["parameters"]
    span = lambda values: compact(values[0]) if values[0] == values[-1] else f"{compact(values[0])} to {compact(values[-1])}"  # noqa: E731
    return f"{span(sizes)} parameters, {span(tokens)} training tokens per run" if tokens and sizes else "no run was finished"


def _claim(claim: Mapping[str, Any]) -> str:
    expected = claim["expect"] if claim["metric"] == "bits_per_byte" or claim["expect"].endswith("trains") else f"{claim['expect']} ({claim['metric']})"
    seen = claim["why"]
    if "difference" in claim:
        margin = f", margin {claim['margin']:.3g}" if claim["margin"] is not None else ""
        chance = f"; p {p_text(claim['p'])}; corrected {p_text(claim['p_holm'])}" if "p" in claim else ""
        seen = f"{claim['difference']:+.4g} ({claim['low']:+.4g} to {claim['high']:+.4g}){margin}{chance}"
    return f"| {claim['name']} | {_cell(claim['claim'])} | `{_cell(expected)}` | {_cell(seen)} | **{claim['kind']}** |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _reading(result: Mapping[str, Any]) -> list[str]:
    tested = sum("p" in claim for claim in result["claims"])
    return [
        "The number of a claim is the left side minus the right side of its expectation, with the paired 95% t interval over seeds. It *agrees* if the interval lies",
        "where the expectation says, *disagrees* if it lies entirely on the other side, and otherwise the runs *cannot tell*. Intervals are not corrected:",
        f"of {tested} with a p, {0.05 * tested:.1f} would be called by chance; the corrected p uses Holm's procedure. The verdicts hold for this size,",
        "text and budget and for new seeds of these recipes; a claim may hold at one scale and not at another.",
    ]


def _variant(variant: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    mean = "" if variant["mean"] is None else f"{variant['mean']:.4f}" + ("" if variant["sd"] is None else f" ± {variant['sd']:.4f}")
    delta = "" if variant is first or variant["mean"] is None or first["mean"] is None else f"{variant['mean'] - first['mean']:+.4f}"
    losses = [loss for loss in variant["final_loss"] if loss is not None]
    loss = f"{sum(losses) / len(losses):.3f}" if losses else ""
    speed = "" if variant["tokens_per_second"] is None else compact(variant["tokens_per_second"])
    size = "" if variant["parameters"] is None else compact(variant["parameters"])
    return f"| {variant['name']} | {size} | {mean} | {delta} | {loss} | {speed} | {len(variant['diverged']) or ''} |"


def figure(result: Mapping[str, Any], theme: Theme = LIGHT) -> bytes:
    """PNG: one row per variant, one dot per seed, a diamond for the mean; the line is the mean of the first variant."""
    variants = result["variants"]
    with styled(theme):
        drawn = new_figure(8.5, 1.2 + 0.24 * len(variants))
        axes = drawn.subplots()
        if variants[0]["mean"] is not None:
            axes.axvline(variants[0]["mean"], color=theme.muted, linewidth=1.0)
        for row, variant in enumerate(variants):
            losses = [loss for loss in variant["bits_per_byte"] if loss is not None]
            axes.plot(losses, [row] * len(losses), "o", markersize=4, color=theme.series[0], alpha=0.45, markeredgewidth=0)
            if variant["mean"] is not None:
                axes.plot([variant["mean"]], [row], "D", markersize=6, color=theme.series[1 if row else 0])
        axes.set_yticks(range(len(variants)), [v["name"] + (f"  ({len(v['diverged'])} diverged)" if v["diverged"] else "") for v in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.set_xlabel("validation bits per byte (lower is better)")
        axes.set_title(f"{result['name']}: values per seed and mean; vertical line: mean of {variants[0]['name']}")
        axes.grid(axis="y", visible=False)
        return png(drawn)


PANELS = 6  # per row


def curves(result: Mapping[str, Any], theme: Theme = LIGHT) -> bytes:
    """PNG: one panel per variant with its training loss and that of the first variant."""
    first, *others = result["variants"]
    shown = others or [first]
    columns = min(PANELS, len(shown))
    lines = -(-len(shown) // columns)
    with styled(theme):
        drawn = new_figure(1.2 + 1.9 * columns, 0.9 + 1.5 * lines)
        panels = drawn.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for panel, variant in zip(panels.flat, shown, strict=False):
            if variant["curve"]:
                panel.plot(*zip(*variant["curve"], strict=True), color=theme.series[0])
            if first["curve"]:
                panel.plot(*zip(*first["curve"], strict=True), color=theme.muted, linewidth=1.0)
            panel.set_title(variant["name"] + ("" if variant["curve"] else " (diverged)"), fontsize=7.5, pad=3)
        for panel in panels.flat[len(shown) :]:
            panel.set_visible(False)
        drawn.supxlabel("step", fontsize=9)
        drawn.supylabel("training loss (nats per token)", fontsize=9)
        drawn.suptitle(f"{result['name']}: training loss, mean over seeds (gray: {first['name']})", fontsize=10, x=0.01, ha="left")
        return png(drawn)
