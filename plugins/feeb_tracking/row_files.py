"""Files of rows (JSONL) that a resumed run continues."""

from __future__ import annotations

import json
from pathlib import Path

from feebcore.files import explain, read_jsonl, write_atomic


def keep_until(path: Path, step: int, most: int | None = None) -> int:
    """Drop the rows of a JSONL file after `step`, those beyond the first `most`, and a last line that a kill cut short.
    Final scores are made anew. Returns how many rows are left."""
    if not path.exists():
        return 0
    rows = [row for row in read_jsonl(path)[:most] if row["step"] <= step and not row.get("whole_split")]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def append(path: Path, text: str) -> None:
    """Raises ArtifactError or OSError saying why it cannot be written."""
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise explain(error, path) from error
