"""Stage sweep: runs many small trainings, fits a scaling law and predicts a held-out cell before it is run.

Cells share this one process and a ledger; a killed sweep continues at the first unfinished cell. A cell that diverged is
censored: kept, reported, not fitted. Few cells seldom identify a law: its flags say so, and what counts is the error on
the held-out cell beside that of simply guessing the nearest cell's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from feebcore.artifacts import Artifact, StageOutput
from feebcore.config import Observation, StageConfig
from feebcore.errors import RecipeError
from feebcore.parts import Part, PartKey, default_part
from feebcore.scaling.points import ParameterCount
from feebcore.specs import Need, StageSpec
from feebcore.train.config import TrainSection

if TYPE_CHECKING:
    from feebcore.recipe import Recipe

CELL_DEFAULTS: dict[str, Any] = {"callbacks": ["metrics"], "compile": "off", "checkpoint_every": 0, "eval_every": 0}
"""Of `train:` where it does not say otherwise: cells are small and many."""


class SweepConfig(StageConfig):
    """Which cells to train, how, and what to fit.

    train: what all cells share; the planner overrides sizes and steps. parameter_count: which parameters N counts.
    bootstrap: resamples for intervals. eval_documents: held-out documents, evenly spaced and the same for all cells, that
    the loss (nats per token) is measured on; 0: the whole split. keep: with 'checkpoints', a cell that was interrupted goes
    on within itself, and cells can be branched from.
    """

    train: TrainSection = Field(default_factory=lambda: TrainSection(**CELL_DEFAULTS))
    planner: Annotated[Part, PartKey("planners")]
    law: Annotated[Part, PartKey("laws")] = default_part("chinchilla")
    parameter_count: ParameterCount = "non_embedding"
    bootstrap: int = Field(default=200, ge=0)
    eval_documents: int = Field(default=16, ge=0)
    keep: Observation[Literal["none", "models", "checkpoints"]] = Field("none", description="of each cell beside its log: its model, or its checkpoints too")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _cells_share(cls, data: Any) -> Any:
        """Cells take the sweep's seed, and CELL_DEFAULTS."""
        if not isinstance(data, dict) or not isinstance(data.get("train", {}), dict):
            return data
        train = data.get("train") or {}
        return data | {"train": CELL_DEFAULTS | ({"seed": data["seed"]} if "seed" in data else {}) | train}


PART = StageSpec(
    "sweep",
    SweepConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("tokens"), Need("tokenizer")),
    makes=("law",),
    process="worker",
    summary="Runs many small trainings, fits a scaling law and predicts a held-out cell.",
)


def check(section: SweepConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    from feebcore.scaling.cells import with_overrides
    from feebcore.stages.pretrain import check_training

    problems = [f"train.{text}" for text in check_training(section.train)]
    if section.train.parallel.strategy != "none":
        problems.append("train.parallel: cells of a sweep are one process each; leave it out")
    for overrides in section.planner.build().overrides():
        try:
            with_overrides(section.train, overrides)
        except RecipeError as error:
            problems.append(f"planner: {overrides}: {error}")
        if "seq_len" in overrides:
            problems.append("planner: seq_len must be the same for all cells, as their losses are compared; set train.seq_len")
    return list(dict.fromkeys(problems))


def run(section: SweepConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Writes cells.jsonl, prediction.json and law.json; continues from ledger.sqlite when there is one."""
    from feebcore.scaling.sweep import Sweep
    from feebcore.stages.pretrain import verify_tokens

    verify_tokens(inputs["tokens"])
    out.content("law.json")
    with Sweep(section, inputs["tokens"], inputs["tokenizer"], out) as sweep:
        return sweep.run()
