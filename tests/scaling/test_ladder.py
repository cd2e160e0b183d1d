"""Planners ladder and parametric_grid: a rectangle in N and D with exact steps, and what they refuse."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from feeb_evals.planners.rectangle import LadderConfig, ParametricGridConfig
from feeb_evals.planners.rectangle.rectangle import Rectangle
from feebcore.errors import FeebError
from feebcore.parts import resolve_part
from feebcore.protocols import Cell
from feebcore.scaling.planning import Situation

sys.path.insert(0, str(Path(__file__).parent))
from worlds import SIZES, measure

KNOWN = Situation(measure, lambda overrides, factor: {}, "total", resolve_part("laws", "chinchilla").build())
SMALL, LARGE = (12 * 2 * width**2 for width in (64, 128))


def ladder(known: Situation = KNOWN, **options: Any) -> list[Cell]:
    return Rectangle(LadderConfig(**{"sizes": SIZES} | options)).plan(known)


def grid(known: Situation = KNOWN, **options: Any) -> list[Cell]:
    return Rectangle(ParametricGridConfig(**{"sizes": SIZES, "tokens": [2e6, 4e6, 8e6, 1.6e7]} | options)).plan(known)


def tokens(cell: Cell) -> float:
    return cell.flops / measure(cell.overrides).flops_per_token


def test_a_ladder_trains_every_size_at_every_multiple_and_the_heldout_run_last() -> None:
    cells = ladder(heldout=[{"size": SIZES[1], "multiple": 20}])
    assert [c.name for c in cells] == [f"{size}-x{m}" for size in ("d64-l2", "d128-l2") for m in (1, 2, 5, 10)] + ["heldout-d128-l2-x20"]
    assert [(c.round, c.predicted) for c in cells] == [(0, False)] * 8 + [(1, True)]
    asked = [20 * m * size for size in (SMALL, LARGE) for m in (1, 2, 5, 10)] + [20 * 20 * LARGE]
    for cell, number in zip(cells, asked, strict=True):
        assert cell.flops == cell.overrides["max_steps"] * measure(cell.overrides).flops_per_step
        assert tokens(cell) == pytest.approx(number, rel=0.01)
    assert cells[4].overrides["optimizer.lr"] == 0.01


def test_n_is_what_the_sweep_counts() -> None:
    def double(overrides: Any) -> Any:
        cost = measure(overrides)
        return dataclasses.replace(cost, counts=dataclasses.replace(cost.counts, non_embedding=cost.counts.total // 2))

    half = ladder(dataclasses.replace(KNOWN, measure=double, parameter_count="non_embedding"))
    assert [tokens(c) for c in half] == pytest.approx([tokens(c) / 2 for c in ladder()], rel=0.02)


def test_a_grid_trains_every_size_on_the_same_tokens() -> None:
    cells = grid(heldout=[{"size": SIZES[1], "tokens": 3.2e7}])
    assert [c.name for c in cells][3:5] == ["d64-l2-1.6e07", "d128-l2-2e06"]
    assert [tokens(c) for c in cells] == pytest.approx([2e6, 4e6, 8e6, 1.6e7] * 2 + [3.2e7], rel=0.01)
    assert [c.heldout for c in cells] == [False] * 8 + [True]


def test_sizes_that_differ_in_other_keys_have_names_of_their_own() -> None:
    cells = grid(sizes=[*SIZES, SIZES[0] | {"optimizer.lr": 0.02}])
    assert len({c.name for c in cells}) == 12
    assert cells[8].name == "d64-l2-2e06-2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multiples": [1, 2, 4]}, "2 sizes x 3 multiples are fewer than the 8 distinct runs that an interval needs"),
        ({"multiples": [1, 2, 4, 2]}, "multiples: 2.0 is listed twice"),
        ({"sizes": [SIZES[0], SIZES[0]]}, "sizes: .* is listed twice"),
        ({"multiples": [1, 1.2, 1.4, 1.6]}, "multiples: 1 to 1.6 is less than a factor of 2"),
        ({"multiples": [0, 1, 2, 4]}, "greater than 0"),
    ],
)
def test_lists_that_determine_no_law_are_refused_with_the_recipe(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LadderConfig(**{"sizes": SIZES} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": [4096, 8192, 16384, 32768]}, r"d64-l2-4.1e03, fewer than min_steps 50; raise the number of tokens or shorten seq_len"),
        ({"tokens": [1.5 * 4096, 1e6, 2e6, 4e6], "min_steps": 1}, r"off the number of tokens \(tolerance 1 %\)"),
        ({"tokens": [2e6, 2.0001e6, 8e6, 1.6e7]}, "runs d64-l2-2e06 and d64-l2-2e06-2 are the same run"),
        ({"sizes": [SIZES[0], SIZES[0] | {"optimizer.lr": 0.02}]}, r"9.83e\+04 to 9.83e\+04 total parameters is less than a factor of 2"),
        ({"sizes": [*SIZES, SIZES[0] | {"optimizer.lr": 0.02}], "tokens": [2e6, 4e6, 8e6]}, "6 runs of distinct N and D are fewer than the 8"),
        ({"budget": 1e13}, r"8 runs take .* more than the budget of 1e\+13; raise it, or leave out sizes or tokens \(d128-l2-1.6e07 alone"),
    ],
)
def test_what_cannot_be_trained_as_asked_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(FeebError, match=message):
        grid(**options)


def test_more_epochs_than_allowed_are_refused() -> None:
    known = dataclasses.replace(KNOWN, train_tokens=3_000_000)
    with pytest.raises(FeebError, match=r"-l2-1.6e07 takes 1.6e\+07 tokens, 5.3 epochs of the training data \(max_epochs 4\)"):
        grid(known)
    assert len(grid(known, max_epochs=6)) == 8


def test_the_nearest_size_is_recommended_and_none_where_none_is_near() -> None:
    planner = Rectangle(LadderConfig(sizes=SIZES))
    assert planner.sized(KNOWN, 0.9 * LARGE, 1e12)["architecture.d_model"] == 128
    with pytest.raises(FeebError, match="no size near"):
        planner.sized(KNOWN, 100 * LARGE, 1e15)
