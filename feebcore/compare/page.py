"""page.md of a comparison: the verdict, every recipe vs. the baseline, notes, the figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from feebcore.compare.report import numbers_of
from feebcore.report.page import Picture, chart_page
from feebcore.report.style import compact

COLUMNS = ("recipe", "parameters", "bits per byte", "Δ vs. baseline", "95% CI", "p", "compute multiplier", "steps", "tokens/s", "LR factor", "diverged")
MULTIPLIER = (
    "Intervals and p are corrected for the number of recipes. The compute multiplier is the training FLOPs that the baseline needs for a recipe's loss, "
    "as a multiple of the recipe's own."
)
EQUAL = {"tokens": "training tokens", "flops": "training FLOPs", "time": "training time"}


def text(result: Mapping[str, Any], name: str, description: str, command: str, environment: Mapping[str, Any], pictures: list[Picture]) -> str:
    """description: of the baseline's recipe. command: what makes the page; '' where no command did."""
    lines = [
        f"# {name}",
        *(["", description] if description else []),
        *(["", f"    {command}"] if command else []),
        "",
        f"{len(result['recipes'])} recipes with matched {EQUAL[result['budget']]}, {result['seeds']} pairs of seeds; {_scale(result['recipes'])}.",
        f"torch {environment['packages'].get('torch', '?')}, {environment['cpus']} CPUs, {environment['machine']}.",
        "",
        *(f"- {sentence}" for sentence in result["verdict"]),
        "",
        *(f"![{picture.heading}]({picture.name}.png)\n" for picture in pictures),
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row) + " |" for row in _rows(result)),
        "",
        MULTIPLIER,
        "",
        *(f"- {note}" for note in (*result["notes"], *result["assumptions"])),
        "",
    ]
    return "\n".join(lines)


def _scale(candidates: Sequence[Mapping[str, Any]]) -> str:
    base = candidates[0]
    size = f"{compact(base['parameters']['total'])} parameters, " if base["parameters"] else ""
    return f"the baseline has {size}{compact(base['tokens'])} training tokens and {compact(base['flops'])} training FLOPs per run"


def html(result: Mapping[str, Any], name: str, description: str, command: str, pictures: list[Picture]) -> str:
    """page.html: the same with figures that one can zoom."""
    table = {"columns": COLUMNS, "rows": _rows(result)}
    notes = [MULTIPLIER, *result["notes"], *result["assumptions"]]
    return chart_page(name, pictures, lead=description, command=command, sentences=result["verdict"], table=table, notes=notes)


def _rows(result: Mapping[str, Any]) -> list[list[str]]:
    variants = {variant["name"]: variant for variant in result["variants"]}
    return [_row(candidate, variants.get(candidate["name"])) for candidate in result["recipes"]]


def _row(candidate: Mapping[str, Any], variant: Mapping[str, Any] | None) -> list[str]:
    cells = numbers_of(candidate, variant)
    size = compact(candidate["parameters"]["total"]) if candidate["parameters"] else ""
    speed = "" if candidate["tokens_per_second"] is None else compact(candidate["tokens_per_second"])
    diverged = str(len(candidate["diverged"]) or "")
    return [candidate["name"], size, *cells, f"{candidate['steps']:,}", speed, f"{candidate['lr']['factor']:g} x", diverged]
