"""Flow `pipeline`: every stage of a recipe, or of each member of a study, in one flow run."""

from __future__ import annotations

from typing import Any

from prefect import flow

from feeb_pipelines.flows.common import OPTIONS, run_stages


@flow(name="pipeline", **OPTIONS)
def pipeline(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1) -> Any:
    """From text to a report: builds what is missing, reuses what is finished, each stage a task of this run.

    recipe: path of a YAML file. overrides: `key=value` texts, as given to `feeb run --set`. workspace: folder of the
    artifacts; default FEEB_WORKSPACE or ./data. jobs: members of a study side by side.
    """
    return run_stages(None, recipe, overrides, workspace, jobs)
