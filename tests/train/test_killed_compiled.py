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
@pytest.mark.parametrize(("compile", "layers"), [("blocks", 2), ("on", 1)])
def test_a_kill_of_a_compiled_run_changes_no_bit(tmp_path, compile, layers):
    """At a moment that is drawn. Several kills and several ranks are those of the uncompiled runs next door."""
    kills_change_no_bit(tmp_path, compile, ranks=1, kills=1, precision="bf16", layers=layers)
