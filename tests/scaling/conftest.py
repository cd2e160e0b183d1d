"""Public data for testing fits; it lies next to the checkout and is not part of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

GOLD = Path(__file__).resolve().parents[3] / "shared" / "gold"


@pytest.fixture
def gold():
    def read(name: str) -> list[dict[str, str]]:
        path = GOLD / name
        if not path.exists():
            pytest.skip(f"no {path}")
        with open(path) as stream:
            return list(csv.DictReader(stream))

    return read
