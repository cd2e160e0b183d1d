"""As test_killed_training.py, compiled; a file of its own, so that both can run at once."""

from __future__ import annotations

import pytest
from test_killed_training import kills_change_no_bit

from feebcore.model.precision import resolve_device
from feebcore.train import compilation


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not compilation.has_compiler(resolve_device("cpu")), reason="no C++ compiler here")
@pytest.mark.parametrize("ranks", [1, 2])
def test_three_kills_of_a_compiled_run_change_no_bit(tmp_path, ranks):
    kills_change_no_bit(tmp_path, "on", ranks, kills=3)
