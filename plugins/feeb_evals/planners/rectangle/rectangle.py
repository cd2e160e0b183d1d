"""Sizes x lengths, steps from exact FLOPs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from feeb_evals.planners.rectangle import LEAST_RUNS
from feebcore.errors import FeebError, plural
from feebcore.protocols import Cell
from feebcore.scaling.planning import Planner, Situation, dotted, run_names, size_name, solve_steps

if TYPE_CHECKING:
    from feeb_evals.planners.rectangle import RectangleConfig


LEAST_SHARED = 0.25
"""Share of a branch's steps that the original run must train: a warmup alone is not worth its checkpoints."""


class Rectangle(Planner):
    """Held-out runs come last, predicted from all the others."""

    config: RectangleConfig

    def overrides(self) -> list[dict[str, Any]]:
        return [overrides for _, overrides, _, _ in self._requested()]

    def plan(self, known: Situation) -> list[Cell]:
        """Raises FeebError for what cannot be trained as asked, or determines no law."""
        cells = [self._cell(known, *row) for row in self._requested()]
        self._refuse_twins(cells)
        self._refuse_narrow(cells, known)
        self._refuse_epochs(cells, known)
        if self.config.branches:
            cells = self._branched(cells, known)
        self._refuse_budget(cells)
        return cells

    def _requested(self) -> list[tuple[str, dict[str, Any], float, bool]]:
        """(name, overrides, length, heldout) of every run."""
        rows = [(size, length, False) for size in self.config.sizes for length in self.config.lengths]
        rows += [(held.size, held.length, True) for held in self.config.held]
        names = run_names([f"{'heldout-' if heldout else ''}{size_name(size)}-{self.config.label(length)}" for size, length, heldout in rows])
        return [(name, dotted(size), length, heldout) for name, (size, length, heldout) in zip(names, rows, strict=True)]

    def _cell(self, known: Situation, name: str, overrides: dict[str, Any], length: float, heldout: bool) -> Cell:
        config, cost = self.config, known.measure(overrides)
        tokens = config.tokens_of(length, getattr(cost.counts, known.parameter_count))
        flops = tokens * cost.flops_per_token
        solved, exact = solve_steps(config.planner, name, overrides, flops, known.measure, config.min_steps, config.tolerance, config.unit)
        return Cell(name, solved, exact, heldout, round=int(heldout), predicted=heldout)

    def _branched(self, cells: Sequence[Cell], known: Situation) -> list[Cell]:
        """Runs that differ from a longer one in nothing but their steps begin where they part from it. Held-out runs are trained by themselves."""
        alike: dict[str, list[Cell]] = {}
        for cell in cells:
            if not cell.heldout:
                alike.setdefault(json.dumps(cell.overrides | {"max_steps": 0}, sort_keys=True), []).append(cell)
        originals = {cell.name: max(group, key=_steps) for group in alike.values() for cell in group}
        if all(name == original.name for name, original in originals.items()):
            raise FeebError(
                f"planner {self.config.planner}: branches: no two runs of a size have the same batch_size, as min_steps {self.config.min_steps} halves it "
                f"for the shorter ones; make batch_size smaller"
            )
        return [self._branch(cell, originals.get(cell.name, cell), known) for cell in cells]

    def _branch(self, cell: Cell, original: Cell, known: Situation) -> Cell:
        if original is cell:
            return cell
        shared = known.shared_steps(cell.overrides, _steps(original))
        if shared < LEAST_SHARED * _steps(cell):
            raise FeebError(
                f"planner {self.config.planner}: branches: {cell.name} ({_steps(cell):,} steps) and {original.name} ({_steps(original):,}) train only {shared:,} steps "
                f"alike, then learning rates or data follow the run's length; set train.schedule to wsd with warmup_steps (not warmup_fraction), or branches to false"
            )
        return dataclasses.replace(cell, original=original.name, shared_steps=shared)

    def _refuse_twins(self, cells: Sequence[Cell]) -> None:
        for i, cell in enumerate(cells):
            if (twin := next((other for other in cells[:i] if other.overrides == cell.overrides), None)) is not None:
                raise FeebError(f"planner {self.config.planner}: runs {twin.name} and {cell.name} are the same run; leave one out")

    def _refuse_narrow(self, cells: Sequence[Cell], known: Situation) -> None:
        planner, runs = self.config.planner, set()
        for cell in cells:
            cost = known.measure(cell.overrides)
            if not cell.heldout:
                runs.add((getattr(cost.counts, known.parameter_count), cell.flops / cost.flops_per_token))
        smallest, largest = (choose(size for size, _ in runs) for choose in (min, max))
        if largest < 2 * smallest:
            raise FeebError(
                f"planner {planner}: sizes: {smallest:.3g} to {largest:.3g} {known.parameter_count} parameters is less than a factor of 2, too narrow for a law; "
                f"spread them"
            )
        if len(runs) < LEAST_RUNS:
            raise FeebError(
                f"planner {planner}: {plural(len(runs), 'run')} of distinct N and D are fewer than the {LEAST_RUNS} that an interval needs; "
                f"add sizes or {self.config.key}"
            )

    def _refuse_epochs(self, cells: Sequence[Cell], known: Situation) -> None:
        most, longest = max((cell.flops / known.measure(cell.overrides).flops_per_token, cell.name) for cell in cells)
        if known.train_tokens and most > self.config.max_epochs * known.train_tokens:
            raise FeebError(
                f"planner {self.config.planner}: {longest} takes {most:.3g} tokens, {most / known.train_tokens:.1f} epochs of the training data "
                f"(max_epochs {self.config.max_epochs:g}); prepare more text, or lower its {self.config.unit}"
            )

    def _refuse_budget(self, cells: Sequence[Cell]) -> None:
        cost, dearest = sum(cell.trained_flops for cell in cells), max(cells, key=lambda cell: cell.flops)
        if self.config.budget is not None and cost > self.config.budget:
            raise FeebError(
                f"planner {self.config.planner}: {len(cells)} runs take {cost:.3g} FLOPs, more than the budget of {self.config.budget:.3g}; raise it, "
                f"or leave out sizes or {self.config.key} ({dearest.name} alone takes {dearest.flops:.3g})"
            )


def _steps(cell: Cell) -> int:
    return int(cell.overrides["max_steps"])
