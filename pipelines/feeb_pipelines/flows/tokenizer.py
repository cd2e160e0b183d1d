"""Flow `tokenizer`: Trains a tokenizer on the training documents. Missing inputs are built first."""

from __future__ import annotations

from typing import Any

from prefect import flow

from feeb_pipelines.flows.common import OPTIONS, run_stages


@flow(name="tokenizer", **OPTIONS)
def tokenizer(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1) -> Any:
    """Trains a tokenizer on the training documents.

    recipe: path of a YAML file. overrides: `key=value` texts, as given to `feeb run --set`. workspace: folder of the
    artifacts; default FEEB_WORKSPACE or ./data. jobs: members of a study side by side.
    """
    return run_stages(["tokenizer"], recipe, overrides, workspace, jobs)
