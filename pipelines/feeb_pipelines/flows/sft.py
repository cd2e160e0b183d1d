"""Flow `sft`: Fine-tunes a model on solved examples of a task. Missing inputs are built first."""

from __future__ import annotations

from typing import Any

from prefect import flow

from feeb_pipelines.flows.common import OPTIONS, run_stages


@flow(name="sft", **OPTIONS)
def sft(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1) -> Any:
    """Fine-tunes a model on solved examples of a task.

    recipe: path of a YAML file. overrides: `key=value` texts, as given to `feeb run --set`. workspace: folder of the
    artifacts; default FEEB_WORKSPACE or ./data. jobs: members of a study side by side.
    """
    return run_stages(["sft"], recipe, overrides, workspace, jobs)
