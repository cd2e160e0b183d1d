"""The isoFLOP planner: exact FLOPs, refusals, and options that a recipe is checked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feeb_evals.planners.isoflop import IsoflopConfig
from feeb_evals.planners.isoflop.isoflop import Isoflop
from feebcore.errors import FeebError
from feebcore.parts import resolve_part
from feebcore.scaling.planning import Situation

sys.path.insert(0, str(Path(__file__).parent))
from worlds import SIZES, measure


def _plan(**options: Any) -> list:
    known = Situation(measure, lambda overrides, factor: {}, "total", resolve_part("laws", "chinchilla").build())
    return Isoflop(IsoflopConfig(**{"sizes": SIZES, "budgets": [1e12, 4e12]} | options)).plan(known)


def test_every_size_at_every_budget_within_tolerance_and_heldout_last() -> None:
    cells = _plan(heldout=[{"flops": 2e13, "size": SIZES[1]}])
    assert [(c.budget, c.heldout) for c in cells] == [(1e12, False), (1e12, False), (4e12, False), (4e12, False), (2e13, True)]
    assert len({c.name for c in cells}) == 5
    for cell in cells:
        cost = measure(cell.overrides)
        assert cell.flops == cell.overrides["max_steps"] * cost.flops_per_step
        assert cell.flops == pytest.approx(cell.budget, rel=0.01)
    assert cells[1].overrides["optimizer.lr"] == 0.01
    assert cells[1].overrides["architecture.d_model"] == 128


def test_a_budget_may_have_sizes_of_its_own() -> None:
    cells = _plan(budgets=[{"flops": 1e12, "sizes": SIZES[:1]}, 4e12])
    assert [c.overrides["architecture.d_model"] for c in cells] == [64, 64, 128]


def test_the_batch_is_halved_until_there_are_enough_steps() -> None:
    few = _plan(budgets=[2e10], sizes=SIZES[:1], min_steps=40, tolerance=0.05)[0]
    assert few.overrides["batch_size"] < 32
    assert few.overrides["max_steps"] >= 40
    assert "batch_size" not in _plan(budgets=[4e12], sizes=SIZES[:1])[0].overrides


def test_a_missed_budget_is_refused_with_what_to_do() -> None:
    with pytest.raises(FeebError, match=r"off the budget \(tolerance 1 %\); raise the budget or min_steps"):
        _plan(budgets=[2.5 * 6 * 12 * 2 * 64**2 * 32 * 128], sizes=SIZES[:1], min_steps=1)
    with pytest.raises(FeebError, match="fewer than min_steps"):
        _plan(budgets=[1e6])


def test_equal_cells_are_refused() -> None:
    with pytest.raises(FeebError, match="are the same run"):
        _plan(sizes=[SIZES[0], SIZES[0]])


def test_sizes_must_be_given_and_keys_are_known() -> None:
    with pytest.raises(ValidationError, match="has no sizes"):
        IsoflopConfig(budgets=[1e12])
    with pytest.raises(ValidationError, match="budgits"):
        IsoflopConfig.model_validate({"budgits": [1], "budgets": [1e12], "sizes": SIZES})


def test_names_tell_sizes_apart_that_differ_in_other_keys_only() -> None:
    sizes = [{"d_model": 64, "num_layers": 2, "optimizer.lr": lr} for lr in (0.01, 0.02)]
    assert [c.name for c in _plan(sizes=sizes, budgets=[1e12])] == ["1e12-d64-l2", "1e12-d64-l2-2"]
