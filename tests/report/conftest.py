from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory):
    """(workspace root, artifacts) of a made-up run of every stage."""
    from fake_run import make_artifacts

    root = tmp_path_factory.mktemp("made-up")
    return root, make_artifacts(root)
