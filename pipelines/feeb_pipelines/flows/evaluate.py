"""Flow `evaluate`: Runs benchmarks on every model of the recipe. Missing inputs are built first."""

from __future__ import annotations

from typing import Any

from prefect import flow

from feeb_pipelines.flows.common import OPTIONS, run_stages


@flow(name="evaluate", **OPTIONS)
def evaluate(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1) -> Any:
    """Runs benchmarks on every model of the recipe.

    recipe: path of a YAML file. overrides: `key=value` texts, as given to `feeb run --set`. workspace: folder of the
    artifacts; default FEEB_WORKSPACE or ./data. jobs: members of a study side by side.
    """
    return run_stages(["evaluate"], recipe, overrides, workspace, jobs)
