"""Every optimizer takes the same steps on weights that two processes share as on whole ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feebcore.registry import BUILTIN, get_registry

SCRIPT = Path(__file__).with_name("sharded_steps.py")


@pytest.mark.slow
def test_sharded_steps_equal_whole_ones_for_every_optimizer(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "2", str(tmp_path / "meet")], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], told[0][1][-3000:] + told[1][1][-3000:]
    gaps = json.loads(told[0][0].splitlines()[-1])
    builtin = {spec.name for kind, spec in get_registry().parts() if kind == "optimizers" and spec.distribution == BUILTIN}
    assert builtin <= gaps.keys()
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}
