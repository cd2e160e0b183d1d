"""Probes are tested in the training tests' tiny run."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring this machine takes no time."""
    from feebcore.train import matmul_peak

    monkeypatch.setitem(matmul_peak.SIDE, "cpu", 128)
    monkeypatch.setattr(matmul_peak, "measure", functools.partial(matmul_peak.measure, seconds=0.01))
    matmul_peak._measured.cache_clear()
