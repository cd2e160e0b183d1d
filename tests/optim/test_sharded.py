"""Every optimizer takes the same steps on weights that two processes share as on whole ones."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feeb_optim import owners
from feebcore.registry import BUILTIN, get_registry

SCRIPT = Path(__file__).with_name("sharded_steps.py")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the ranks found."""
    environment, meet = os.environ | {"OMP_NUM_THREADS": "1"}, tmp_path_factory.mktemp("ranks") / "meet"
    ranks = [
        subprocess.Popen([sys.executable, str(SCRIPT), str(rank), "2", str(meet)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs[0][1][-3000:] + outputs[1][1][-3000:]
    return dict(json.loads(outputs[0][0].splitlines()[-1]))


@pytest.mark.slow
def test_sharded_steps_equal_whole_ones_for_every_optimizer(told: dict[str, Any]) -> None:
    builtin = {spec.name for kind, spec in get_registry().parts() if kind == "optimizers" and spec.distribution == BUILTIN}
    assert builtin <= told["gaps"].keys()
    assert {name: gap for name, gap in told["gaps"].items() if gap > 1e-4} == {}


@pytest.mark.slow
def test_each_matrix_is_computed_by_one_rank_and_the_bits_are_those_of_a_rank_that_computes_all(told: dict[str, Any]) -> None:
    """Whole on every rank as with ddp, and sharded; in one round and in several."""
    assert len(told["wrong"]) == 14
    assert {name: differ for name, differ in told["wrong"].items() if differ} == {}


def test_owners_share_the_cost_and_rounds_leave_no_matrix_out() -> None:
    costs = [5, 1, 8, 8, 2, 3, 5, 1]
    found = owners.assign(costs, 3)
    assert sorted(sum(c for c, owner in zip(costs, found, strict=True) if owner == rank) for rank in range(3)) == [11, 11, 11]
    for limit in (1, 9, 100):
        turns = list(owners.rounds(enumerate(costs), limit))
        assert [i for turn in turns for i in turn] == list(range(8))
        assert all(len(turn) == 1 or sum(costs[i] for i in turn) <= limit for turn in turns)
        assert all(costs[b[0]] + sum(costs[i] for i in a) > limit for a, b in itertools.pairwise(turns))
