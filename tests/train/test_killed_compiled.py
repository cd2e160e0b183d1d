"""As test_killed_training.py, compiled; a file of its own, so that both can run at once.

Every start after the first finds its machine code in inductor's cache, as a resumed run does. benchmarks/kill_training.py
--compile on --kills 20 is the long form.
"""

from __future__ import annotations

import pytest
from test_killed_training import kills_change_no_bit

from feebcore.model.precision import resolve_device
from feebcore.train import compilation


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not compilation.has_compiler(resolve_device("cpu")), reason="no C++ compiler here")
@pytest.mark.parametrize(("compile", "ranks", "kills", "layers"), [("blocks", 1, 2, 2), ("on", 1, 1, 1), ("on", 2, 1, 1)])
def test_kills_of_a_compiled_run_change_no_bit(tmp_path, compile, ranks, kills, layers):
    """By blocks twice, so that a resumed run is resumed again; whole once, in one process and in two; the moments are drawn."""
    kills_change_no_bit(tmp_path, compile, ranks, kills, precision="bf16", layers=layers)
