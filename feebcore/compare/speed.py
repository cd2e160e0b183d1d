"""How long the runs of a sweep will take on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from feebcore.artifacts import Workspace
from feebcore.compare.cost import measure
from feebcore.errors import FeebError
from feebcore.hardware import available_cpus
from feebcore.protocols import Cell
from feebcore.recipe import Recipe
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import plan
from feebcore.scaling.planning import Planner, Situation
from feebcore.scaling.sweep import cell_run
from feebcore.scaling.use import Speed, before_it_runs, measured_speed, planned, section_of, sweep_key

STEPS = 12
OVERHEAD = 2.0
"""Seconds that a run takes besides its steps: data, validation, writing the model."""


def speed_of(recipe: Recipe, workspace: Workspace, planner: Planner, situation: Situation, jobs: int = 1) -> Speed:
    """From finished runs of the same architecture in the workspace; where there are none, from a few steps of three of the planner's runs."""
    section = section_of(recipe)
    measured = measured_speed(workspace, section.train.architecture.spec.name, section.parameter_count)
    return measured or tried_speed(recipe, workspace, situation, planner.plan(situation), jobs)


def budget_for_hours(recipe: Recipe, workspace: Workspace, hours: float, jobs: int) -> float:
    """The FLOPs that planner `adaptive` can spend in so many hours. recipe: with any budget. Raises FeebError where they are too few or too many."""
    planner, situation = before_it_runs(recipe, workspace)
    situation = dataclasses.replace(situation, target=0.0)

    def with_budget(budget: float) -> Planner:
        return type(planner)(planner.config.model_copy(update={"budget": budget}))

    budget = _least_budget(with_budget, situation)
    for turn in range(6):  # larger runs are faster, and every run has its overhead
        tried = with_budget(budget)
        if turn < 2:  # with the sizes of about the right budget
            speed = speed_of(recipe, workspace, tried, situation, jobs)
        budget *= 3600 * hours * jobs / sum(row.seconds for row in planned(tried, situation, speed))
    return budget


def _least_budget(with_budget: Callable[[float], Planner], situation: Situation) -> float:
    """The first power of ten that can be planned."""
    for exponent in range(9, 25):
        try:
            with_budget(10.0**exponent).plan(situation)
            return 10.0**exponent
        except FeebError as error:
            refusal = error
    raise refusal


def tried_speed(recipe: Recipe, workspace: Workspace, situation: Situation, cells: Sequence[Cell], jobs: int = 1) -> Speed:
    """From STEPS steps each of the smallest, the middle and the largest of `cells`, with the threads that a run has among `jobs`."""
    key, section = sweep_key(recipe), section_of(recipe)
    built = {item.stage: item.artifact for item in plan(recipe, workspace, [key]) if item.artifact is not None}
    inputs = finished_inputs(recipe, key, workspace, built)
    by_size = sorted({float(getattr(situation.measure(cell.overrides).counts, situation.parameter_count)): cell for cell in cells}.items())
    chosen = dict([by_size[0], by_size[len(by_size) // 2], by_size[-1]])
    rates = []
    for cell in chosen.values():
        own = cell_run(section, recipe, key, cell).recipe
        threads = section.train.threads or max(1, available_cpus() // jobs)
        entry = own.stages["pretrain"]
        timed = dataclasses.replace(entry, section=entry.section.model_copy(update={"threads": threads}))
        with tempfile.TemporaryDirectory() as folder:
            cost = measure(dataclasses.replace(own, stages=own.stages | {"pretrain": timed}), inputs, Path(folder), STEPS)
        rates.append(cell.flops / cell.overrides["max_steps"] / cost["step_seconds"])
    return Speed(tuple(chosen), tuple(rates), OVERHEAD)
