"""Flow `stage`: any one stage by name, also a plugin's that has no flow file of its own. Missing inputs are built first."""

from __future__ import annotations

from typing import Any

from prefect import flow

from feeb_pipelines.flows.common import OPTIONS, run_stages


@flow(name="stage", **OPTIONS)
def stage(stage: str, recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1) -> Any:
    """Builds one stage of a recipe.

    stage: its name in the recipe. recipe: path of a YAML file. overrides: `key=value` texts, as given to
    `feeb run --set`. workspace: folder of the artifacts; default FEEB_WORKSPACE or ./data. jobs: members of a study side by side.
    """
    return run_stages([stage], recipe, overrides, workspace, jobs)
