"""Benchmark `task_accuracy`: exact accuracy on held-out problems of a task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

import feebcore as feeb


class TaskAccuracyConfig(feeb.PartConfig):
    """The problems; each is answered once sampled at temperature 1 and once by greedy decoding."""

    task: Annotated[feeb.Part, feeb.PartKey("tasks")] = Field(
        feeb.default_part("sort"), description="task whose held-out problems are answered; left out: the task that another stage of the recipe names"
    )
    problems: int = Field(512, ge=1, description="number of held-out problems")
    batch_size: feeb.Execution[int] = Field(512, ge=1, description="problems decoded at once")


PART = feeb.BenchmarkSpec(
    "task_accuracy", TaskAccuracyConfig, build=f"{__name__}.task_accuracy:TaskAccuracy", summary="Exact accuracy on held-out problems of a task."
)
