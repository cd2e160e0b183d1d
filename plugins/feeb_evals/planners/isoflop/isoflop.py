"""Sizes x budgets, steps from exact FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feebcore.errors import FeebError
from feebcore.protocols import BuildContext, Cell
from feebcore.scaling.points import Measure

if TYPE_CHECKING:
    from feeb_evals.planners.isoflop import IsoflopConfig, Size

TRAIN_KEYS = ("batch_size", "seq_len", "grad_clip", "precision")  # undotted keys of a size that are not the architecture's


class Isoflop:
    """Held-out cells come last, so that whatever is run in order predicts them from all the others."""

    def __init__(self, config: IsoflopConfig, context: BuildContext | None = None) -> None:
        self.config = config

    def overrides(self) -> list[dict[str, Any]]:
        return [overrides for _, overrides, _, _ in self._requested()]

    def plan(self, measure: Measure) -> list[Cell]:
        """Raises FeebError when a budget is missed by more than `tolerance`, or two cells are the same."""
        cells: list[Cell] = []
        for name, overrides, flops, heldout in self._requested():
            cell = self._solve(name, overrides, flops, heldout, measure)
            if (twin := next((c for c in cells if c.overrides == cell.overrides), None)) is not None:
                raise FeebError(f"planner isoflop: runs {twin.name} and {cell.name} are the same run; leave one out of sizes or budgets")
            cells.append(cell)
        return cells

    def _requested(self) -> list[tuple[str, dict[str, Any], float, bool]]:
        fitted = [(size, budget.flops, False) for budget in self.config.budgets for size in budget.sizes or self.config.sizes]
        held = [(h.size, h.flops, True) for h in self.config.heldout]
        counts: dict[str, int] = {}
        requested = []
        for size, flops, heldout in fitted + held:
            name = f"{'heldout-' if heldout else ''}{flops:.3g}-{_size_name(size)}".replace("+", "")
            counts[name] = counts.get(name, 0) + 1
            if counts[name] > 1:  # sizes that differ in other keys only
                name = f"{name}-{counts[name]}"
            requested.append((name, _dotted(size), flops, heldout))
        return requested

    def _solve(self, name: str, overrides: dict[str, Any], flops: float, heldout: bool, measure: Measure) -> Cell:
        cost = measure(overrides)
        batch = None
        while flops / cost.flops_per_step < self.config.min_steps:
            batch = cost.batch_size // 2
            if batch < 1:
                raise FeebError(
                    f"planner isoflop: {flops:.3g} FLOPs are {flops / cost.flops_per_step:.1f} steps of one sequence at {name}, fewer than "
                    f"min_steps {self.config.min_steps}; raise the budget, shorten seq_len or take a smaller model"
                )
            cost = measure(overrides | {"batch_size": batch})
        steps = max(1, round(flops / cost.flops_per_step))
        exact = steps * cost.flops_per_step
        if abs(exact / flops - 1) > self.config.tolerance:
            raise FeebError(
                f"planner isoflop: {steps} steps at {name} cost {exact:.4g} FLOPs, {100 * (exact / flops - 1):+.1f} % off the budget "
                f"(tolerance {100 * self.config.tolerance:g} %); raise the budget or min_steps, or make batch_size smaller"
            )
        solved = overrides | ({"batch_size": batch} if batch else {}) | {"max_steps": steps}
        return Cell(name, solved, exact, heldout, budget=flops)


def _dotted(size: Size) -> dict[str, Any]:
    """Undotted keys are options of the architecture, except TRAIN_KEYS."""
    return {key if "." in key or key in TRAIN_KEYS else f"architecture.{key}": value for key, value in size.items()}


def _size_name(size: Size) -> str:
    """d64-l2 for {d_model: 64, num_layers: 2}; other keys by their last word."""
    short = {"d_model": "d", "num_layers": "l", "num_heads": "h"}
    parts = [f"{short[k.rpartition('.')[2]]}{v}" for k, v in size.items() if k.rpartition(".")[2] in short and k.rpartition(".")[2] != "num_heads"]
    return "-".join(parts) or "-".join(str(v) for v in size.values())
