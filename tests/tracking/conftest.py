"""Probes are tested in the training tests' tiny run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured of this machine stays out of the user's cache, and takes no time."""
    from feebcore.train import peak

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setitem(peak.SIDE, "cpu", 128)
    monkeypatch.setattr(peak, "SECONDS", 0.01)
    peak._peak.cache_clear()
