"""The page of a sweep: `page.html` in its folder, and the same sections in the report of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from feebcore.files import write_atomic
from feebcore.report import sweep_figures
from feebcore.report.page import Picture, environment, shown
from feebcore.report.sweep_sections import Sections, remarks, sections, tables

PAGE = "page.html"
SECTIONS = ("isoflop", "law", "methods", "predictions", "residuals", "rollouts", "lr_probe")


def write_page(folder: Path) -> Path:
    """Write the page of the sweep in `folder`, from its files; returns its path. Raises DataError where there is no law.json."""
    of = sections(folder)
    path = folder / PAGE
    write_atomic(path, environment().get_template("sweep_page.html.jinja").render(sweep=values(of, sweep_figures.pictures(of))))
    return path


def values(of: Sections, pictures: list[Picture]) -> dict[str, Any]:
    """What the macro `sweep` of sweep.html.jinja shows."""
    return {"of": of, "pictures": {p.name: shown(p) for p in pictures}, "tables": tables(of), "remarks": {name: [] for name in SECTIONS} | remarks(of)}
