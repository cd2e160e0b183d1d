"""Tables, JSON and hints on the terminal. What one copies (names, fingerprints, paths) is never broken over lines."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

GAP = "  "
NARROW = 24
"""Characters that a column of prose needs; with less, its text goes on lines of its own."""


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], prose: Collection[str] = (), drop: Sequence[str] = ()) -> None:
    """Print a table as wide as the terminal, or as wide as it is without one.

    prose: columns whose text may be wrapped; others are never broken. drop: columns to leave out, the first one first, while the
    table is too wide. What still does not fit is longer than the terminal, and stays whole.
    """
    print("\n".join(table_lines(columns, rows, terminal_width(), prose, drop)))


def hint(*lines: str) -> None:
    """What to do next: on stderr, and only where somebody reads it there."""
    if sys.stderr.isatty():
        start = "next: "
        print("\n".join((start if i == 0 else " " * len(start)) + line for i, line in enumerate(lines)), file=sys.stderr)


def terminal_width() -> int | None:
    """Columns of the terminal (or of COLUMNS); None where the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else None


def table_lines(
    columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, prose: Collection[str] = (), drop: Sequence[str] = (), narrow: int = NARROW
) -> list[str]:
    """The lines of `print_table` for a terminal of this width; None: without limit. narrow: characters that prose needs."""
    cells = {column: [row[i] for row in rows] for i, column in enumerate(columns)}
    longest = {column: max(map(len, [column, *cells[column]])) for column in columns}
    shown = [column for column in columns if any(cells[column]) or not rows]

    def fixed() -> int:
        return sum(longest[c] for c in shown if c not in prose) + len(GAP) * (len(shown) - 1)

    def least() -> int:
        return fixed() + sum(min(narrow, longest[c]) for c in shown if c in prose)

    while width is not None and least() > width and (spare := next((c for c in drop if c in shown), None)):
        shown.remove(spare)
    wrapped = [c for c in shown if c in prose]
    if width is not None and wrapped and least() > width:
        return _stacked(shown, wrapped, cells, longest, len(rows), width)
    widths = dict(longest)
    left = None if width is None else width - fixed()
    for i, column in enumerate(wrapped):
        if left is not None:
            widths[column] = min(longest[column], max(narrow, left // (len(wrapped) - i)))
            left -= widths[column]
    lines = [GAP.join(c.ljust(widths[c]) for c in shown).rstrip(), GAP.join("─" * widths[c] for c in shown)]
    for number in range(len(rows)):
        parts = {c: _wrap(cells[c][number], widths[c]) if c in prose and width is not None else [cells[c][number]] for c in shown}
        for k in range(max(map(len, parts.values()), default=1)):
            lines.append(GAP.join((parts[c][k] if k < len(parts[c]) else "").ljust(widths[c]) for c in shown).rstrip())
    return lines


def _stacked(shown: Sequence[str], wrapped: Sequence[str], cells: dict[str, list[str]], longest: dict[str, int], count: int, width: int) -> list[str]:
    """The columns that must stay whole on one line, the prose below it."""
    whole = [c for c in shown if c not in wrapped]
    lines = [GAP.join(c.ljust(longest[c]) for c in whole).rstrip(), "─" * min(width, sum(longest[c] + len(GAP) for c in whole))]
    for number in range(count):
        lines.append(GAP.join(cells[c][number].ljust(longest[c]) for c in whole).rstrip())
        for column in wrapped:
            lines += ["    " + line for line in _wrap(cells[column][number], width - 4) if line]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(8, width), break_long_words=False, break_on_hyphens=False) or [""]
