"""The training log: metrics.jsonl in the run's folder, one JSON object a row."""

from __future__ import annotations

import io
import json
import os
from typing import Any

from feeb_tracking.row_files import keep_until
from feeb_tracking.rows import RowLogger
from feebcore.files import explain
from feebcore.train.callbacks import RunContext

FILE = "metrics.jsonl"


class Metrics(RowLogger):
    """On resume, rows that were written after the checkpoint go, so the log equals that of a run that was never stopped."""

    stream: io.TextIOWrapper | None = None
    rows: int | None = None  # in the file, where a checkpoint says so: a validation that was cut short leaves its step's row to be written again

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.rows = keep_until(run.folder / FILE, run.step, self.rows)
        try:
            self.stream = open(run.folder / FILE, "a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise explain(error, run.folder / FILE) from error

    def write(self, row: dict[str, Any]) -> None:
        assert self.stream is not None
        try:
            self.stream.write(json.dumps(row) + "\n")
            self.rows = (self.rows or 0) + 1
        except OSError as error:
            raise explain(error, self.run.folder / FILE) from error

    def on_save(self, step: int) -> None:
        if self.stream is not None:
            os.fsync(self.stream.fileno())

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.rows = state.get("rows")

    def on_close(self) -> None:
        if self.stream is not None:
            self.stream.close()
