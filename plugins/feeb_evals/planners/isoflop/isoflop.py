"""Sizes x budgets, steps from exact FLOPs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from feebcore.errors import FeebError
from feebcore.protocols import Cell
from feebcore.scaling.planning import Planner, Situation, dotted, run_names, size_name, solve_steps

if TYPE_CHECKING:
    from feeb_evals.planners.isoflop import IsoflopConfig


class Isoflop(Planner):
    """Held-out runs come last, predicted from all the others."""

    config: IsoflopConfig

    def overrides(self) -> list[dict[str, Any]]:
        return [overrides for _, overrides, _, _ in self._requested()]

    def plan(self, known: Situation) -> list[Cell]:
        """Raises FeebError when a budget is missed by more than `tolerance`, or two runs are the same."""
        cells: list[Cell] = []
        for name, overrides, flops, heldout in self._requested():
            solved, exact = solve_steps("isoflop", name, overrides, flops, known.measure, self.config.min_steps, self.config.tolerance)
            cell = Cell(name, solved, exact, heldout, budget=flops, round=int(heldout), predicted=heldout)
            if (twin := next((c for c in cells if c.overrides == cell.overrides), None)) is not None:
                raise FeebError(f"planner isoflop: runs {twin.name} and {cell.name} are the same run; leave one out of sizes or budgets")
            cells.append(cell)
        return cells

    def _requested(self) -> list[tuple[str, dict[str, Any], float, bool]]:
        fitted = [(size, budget.flops, False) for budget in self.config.budgets for size in budget.sizes or self.config.sizes]
        held = [(h.size, h.flops, True) for h in self.config.heldout]
        rows = fitted + held
        names = run_names([f"{'heldout-' if heldout else ''}{flops:.3g}-{size_name(size)}".replace("+", "") for size, flops, heldout in rows])
        return [(name, dotted(size), flops, heldout) for name, (size, flops, heldout) in zip(names, rows, strict=True)]
