"""Progress bars while stages run and a final table; plain lines without a terminal."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from feeb_pipelines.cli.options import visible
from feeb_pipelines.cli.tables import print_table
from feeb_pipelines.server import Connection
from feeb_pipelines.summary import headline, number

PLAIN_EVERY = 10.0
"""Seconds between progress lines without a terminal."""


def console(stderr: bool = False) -> Console:
    """A console as wide as the terminal; without one, wide enough to avoid wrapping."""
    made = _Console(stderr=stderr, highlight=False, soft_wrap=True)
    return made if made.is_terminal or "COLUMNS" in os.environ else _Console(stderr=stderr, highlight=False, soft_wrap=True, width=200)


class _Console(Console):
    """When the reader has gone, as in `feeb run … | head -1`, rich ends the process; here it only falls silent."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


class Display:
    """Prints the events of stages. As a context manager it owns the progress bars."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = console(stderr=quiet)
        self._live = self.console.is_terminal and not quiet
        self._progress: Any = None
        self._bars: dict[str, Any] = {}
        self._printed: dict[str, float] = {}
        self._full: set[str] = set()  # progress names of which 100% has been printed
        self._begun: dict[str, tuple[float, float]] = {}  # when a progress name first reported, and how far it was
        self._lock = threading.Lock()
        self._stage = ""

    def __enter__(self) -> Display:
        if self._live:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[detail]}", style="dim"),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def note(self, text: str) -> None:
        """Print a status message."""
        self.console.print(text, style="dim", markup=False)

    def server(self, connection: Connection) -> None:
        where = "embedded Prefect server; `feeb ui` logs you in" if connection.embedded else connection.source
        self.note(f"Prefect UI: {connection.ui} ({where})")

    def __call__(self, row: dict[str, Any]) -> None:
        with self._lock:
            match row["kind"]:
                case "stage":
                    self._begin(row)
                case "log":
                    self.console.print(f"  {visible(row['text'])}", markup=False)
                case "progress":
                    self._report(row)
                case "done":
                    self._end(row)

    def _begin(self, row: dict[str, Any]) -> None:
        self._stage = row["stage"]
        self._begun.clear()
        self._printed.clear()
        self._full.clear()
        if row["status"] != "reuse":
            verb = "resuming" if row["status"] == "continue" else "running"
            self.console.print(f"[bold]{row['stage']}[/] {verb} [dim]({row['run']}, stage {row['index'] + 1} of {row['total']})[/]")

    def _report(self, row: dict[str, Any]) -> None:
        done, total, now = float(row["done"]), float(row["total"]), time.monotonic()
        name = str(row.get("name") or self._stage)
        first, at = self._begun.setdefault(name, (now, done))
        rate = (done - at) / (now - first) if now > first else 0.0
        left = (total - done) / rate if rate > 0 else None
        extra = {k: v for k, v in row.items() if k not in ("time", "kind", "done", "total", "unit", "name")}
        words = [f"{number(round(done, 3))}/{number(total)} {row.get('unit', '')}".strip()]
        words += [f"{number(rate)} {row.get('unit', '')}/s".replace(" /s", "/s")] if rate > 0 else []
        words += [f"{duration(left)} left"] if left is not None and done < total else []
        words += [f"{k} {number(v)}" for k, v in extra.items() if v is not None]
        detail = ", ".join(words)
        if self._progress is not None:
            if name not in self._bars:
                self._bars[name] = self._progress.add_task(name, total=total, detail=detail)
            self._progress.update(self._bars[name], completed=done, total=total, detail=detail)
            return
        if not (full := done >= total):
            self._full.discard(name)
        due = now - self._printed.get(name, 0.0) > PLAIN_EVERY or (full and name in self._printed)
        if now - first > 3.0 and due and name not in self._full:
            self._printed[name] = now
            if full:
                self._full.add(name)
            self.console.print(f"  {name}: {100 * done / total if total else 0:.0f}%, {detail}", markup=False)

    def _end(self, row: dict[str, Any]) -> None:
        for bar in self._bars.values():
            self._progress.remove_task(bar)
        self._bars.clear()
        if row["status"] == "built":
            self.console.print(f"  [green]done[/] in {duration(row['seconds'])}: {headline(row['metrics'])}")

    def table(self, results: dict[str, Any], seconds: float) -> None:
        """Print every stage with status, time and main metrics, and the path of the report."""
        rows = [
            (run, stage, row["status"], duration(row["seconds"]) if row["status"] == "built" else "", headline(row["metrics"]))
            for run, stages in results.items()
            for stage, row in stages.items()
        ]
        print()
        print_table(("run", "stage", "status", "time", "metrics"), rows, prose=("metrics",), drop=("time",))
        done = [row["status"] for stages in results.values() for row in stages.values()]
        if all(status == "reused" for status in done):
            self.console.print("nothing to do: every stage is already finished")
        else:
            self.console.print(f"{sum(s == 'built' for s in done)} built, {sum(s == 'reused' for s in done)} reused, in {duration(seconds)}")
        for stages in results.values():
            for row in stages.values():
                if name := row["metrics"].get("report"):
                    self.console.print(f"report: {Path(row['path']) / str(name)}", markup=False)


def duration(seconds: float) -> str:
    """0.4 as '0.4 s', 75 as '1 min 15 s', 5400 as '1 h 30 min'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
