"""The claims of docs/scaling-laws.md, on fewer worlds, by the benchmarks that measured them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from law_backtest import public_sets
from law_calibration import design

sys.path.insert(0, str(Path(__file__).parent))
from conftest import GOLD

from feebcore.parts import resolve_part


@pytest.mark.slow
@pytest.mark.parametrize(("budgets", "sizes", "noise"), [(3, 3, 0.002), (4, 4, 0.002), (5, 5, 0.005)])
def test_intervals_hold_the_truth(budgets: int, sizes: int, noise: float) -> None:
    """Exponents, best size and new runs at 4 and 10 times the FLOPs, in 60 worlds."""
    row = design(resolve_part("laws", "posterior").build(), budgets, sizes, noise, 0.0, 60)
    assert row[1] == "60"
    assert min(map(float, row[2:8])) >= 88


@pytest.mark.slow
@pytest.mark.parametrize("keep", [5, 6])
def test_five_and_six_runs_have_no_interval(keep: int) -> None:
    assert design(resolve_part("laws", "posterior").build(), 3, 3, 0.002, 0.0, 40, keep)[1] == "0"


@pytest.mark.slow
def test_predictions_of_public_runs_lie_inside_their_intervals() -> None:
    if not (GOLD / "chinchilla_epoch.csv").exists():
        pytest.skip(f"no {GOLD}")
    law, inside = resolve_part("laws", "posterior").build(), []
    for points in public_sets(GOLD).values():
        flops = np.array([p.flops_6nd("total") for p in points])
        fit = law.fit([p for p, c in zip(points, flops, strict=True) if c <= flops.max() / 10], "total", 500, 0)
        for point, c in zip(points, flops, strict=True):
            if c > flops.max() / 10:
                prediction = law.predict_point(fit, point)
                inside.append(prediction.low <= point.loss <= prediction.high)
    assert len(inside) > 400
    assert np.mean(inside) >= 0.9
