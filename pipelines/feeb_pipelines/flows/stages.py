"""Every flow: prefect.yaml names these variables as entrypoints.

Parameters of all: recipe, the path of a YAML file; overrides, `key=value` texts as given to `feeb run --set`; workspace, the
folder of the artifacts (default FEEB_WORKSPACE or ./data); jobs, the number of parallel runs of a study or sweep; unchecked,
to use parts of plugins that fail their contract.
"""

from __future__ import annotations

from typing import Any

from prefect import Flow, flow

from feeb_pipelines.flows.tasks import run_comparison, run_stages
from feebcore.registry import get_registry

OPTIONS: dict[str, Any] = {"persist_result": True, "result_serializer": "json", "validate_parameters": True}


def stage_flow(name: str) -> Flow[..., Any]:
    """The flow that builds this stage of a recipe; missing inputs are built first. It is described as the stage is."""
    spec = next(spec for _, spec in get_registry().parts("stages") if spec.full_name == f"feeb/{name}")

    @flow(name=name, description=f"{spec.summary} Missing inputs are built first.", **OPTIONS)
    def run(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1, unchecked: bool = False) -> Any:
        return run_stages([name], recipe, overrides, workspace, jobs, unchecked)

    return run


download = stage_flow("download")
tokenizer = stage_flow("tokenizer")
shard = stage_flow("shard")
pretrain = stage_flow("pretrain")
sweep = stage_flow("sweep")
sft = stage_flow("sft")
rl = stage_flow("rl")
evaluate = stage_flow("evaluate")
report = stage_flow("report")


@flow(name="pipeline", **OPTIONS)
def pipeline(recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1, unchecked: bool = False) -> Any:
    """Every stage of a recipe, or of each run of a study: builds what is missing and reuses what is finished."""
    return run_stages(None, recipe, overrides, workspace, jobs, unchecked)


@flow(name="stage", **OPTIONS)
def stage(stage: str, recipe: str, overrides: list[str] | None = None, workspace: str | None = None, jobs: int = 1, unchecked: bool = False) -> Any:
    """Any one stage by its name in the recipe, also a plugin's. Missing inputs are built first."""
    return run_stages([stage], recipe, overrides, workspace, jobs, unchecked)


@flow(name="compare", **OPTIONS)
def compare(
    recipes: list[str],
    settings: dict[str, Any] | None = None,
    overrides: list[str] | None = None,
    quick: bool = False,
    workspace: str | None = None,
    jobs: int = 1,
    unchecked: bool = False,
    law: bool = False,
) -> Any:
    """Trains recipes with the same seeds at a matched budget and tests which one is better, or compares their scaling laws.

    recipes: the baseline first, or one recipe with variants. settings: as the options of `feeb compare`: seeds, budget, effect,
    tune_lr, curve, name; with law: target, name. quick: with the recipes' `quick:` sections.
    """
    return run_comparison(recipes, settings or {}, overrides or [], quick, workspace, jobs, unchecked, law)
