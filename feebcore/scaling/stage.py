"""Stage sweep: runs many small trainings, fits a scaling law and predicts a held-out cell before it is run.

Cells are runs of stage pretrain, several at once with `--jobs`; a killed sweep continues at the first unfinished one. A cell that
diverged is kept and reported, but not fitted. Few cells seldom identify a law: its flags say so, and what counts is the error on
the held-out cell compared with that of simply guessing the nearest cell's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from feebcore.artifacts import Artifact, StageOutput
from feebcore.errors import RecipeError
from feebcore.scaling.config import SweepConfig
from feebcore.specs import Need, StageSpec

if TYPE_CHECKING:
    from feebcore.recipe import Recipe

PART = StageSpec(
    "sweep",
    SweepConfig,
    build=f"{__name__}:run",
    check=f"{__name__}:check",
    needs=(Need("tokens"), Need("tokenizer")),
    makes=("law",),
    process="inline",
    revision=4,  # law.json holds residuals, the learning-rate probe, the frontier and the law by each parameter count
    summary="Trains a sweep of small models, fits a law of size or of mixtures and predicts the loss of a held-out run.",
)


def check(section: SweepConfig, recipe: Recipe) -> list[str]:
    """What is wrong with this section in this recipe, each as 'key: what and what to do'."""
    from feebcore.scaling.cells import with_overrides
    from feebcore.scaling.mixture import MixtureLaw
    from feebcore.train.checks import check_sources, check_training

    planner = section.planner.build()
    problems = [f"train.{text}" for text in (*check_training(section.train), *check_sources(section.train, recipe))]
    if section.train.parallel.strategy != "none":
        problems.append("train.parallel: a run of a sweep trains in one process; remove it")
    if (planner.varies == "mixtures") != isinstance(section.law.build(), MixtureLaw):
        other = "a law of mixtures, such as mixture" if planner.varies == "mixtures" else "a law in N and D, such as posterior, or planner mixture"
        problems.append(
            f"law: {section.law.name} does not fit the runs of planner {section.planner.name}, which differ in their {planner.varies}; take {other}"
        )
    problems += [
        f"train.{key}: it ends runs before the FLOPs that are planned for them; remove it"
        for key in ("stop_at_loss", "stop_when_flat")
        if getattr(section.train, key)
    ]
    for overrides in planner.overrides():
        try:
            problems += [f"planner: {text.removeprefix('data_order: ')}" for text in check_sources(with_overrides(section.train, overrides), recipe)]
        except RecipeError as error:
            problems.append(f"planner: {overrides}: {error}")
        if "seq_len" in overrides:
            problems.append("planner: seq_len must be the same for all runs, as their losses are compared; set train.seq_len")
    return list(dict.fromkeys(problems))


def run(section: SweepConfig, inputs: Mapping[str, Artifact], out: StageOutput) -> dict[str, Any]:
    """Writes runs.jsonl, prediction.json and law.json; continues from ledger.sqlite when there is one."""
    from feebcore.files import read_json
    from feebcore.recipe import from_resolved
    from feebcore.scaling.sweep import Sweep

    out.content("law.json")
    recipe = from_resolved(read_json(out.path / "recipe.json"), out.path / "recipe.json")
    with Sweep(section, recipe, inputs, out) as sweep:
        return sweep.run()
