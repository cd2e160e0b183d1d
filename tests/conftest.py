"""Shared by all tests: quiet trackers, small thread counts, and a registry that a test can extend."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
for name in ("FEEB_PLUGINS_BLOCK", "FEEB_PLUGINS_ALLOW", "FEEB_PLUGINS_STRICT", "FEEB_WORKSPACE", "PREFECT_API_URL"):
    os.environ.pop(name, None)

@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 2 MB; skipped where mounting is not allowed."""
    folder = Path(tmp_path) / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)
