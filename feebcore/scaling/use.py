"""What is asked of a sweep from outside: its plan with costs, where it stands, and the recipe for a larger run."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from feebcore.artifacts import Artifact, Workspace
from feebcore.errors import FeebError, RecipeError
from feebcore.files import read_json
from feebcore.protocols import Cell
from feebcore.recipe import Recipe, StageEntry, from_resolved
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import plan, stages_for
from feebcore.scaling.analysis import points_of_sweep
from feebcore.scaling.cells import with_overrides
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.planning import Planner, Situation
from feebcore.scaling.sweep import best_size, cost_of_a_token, situation_of
from feebcore.study.ledger import read_predictions, read_records
from feebcore.train.pretrain_config import PretrainConfig


def sweep_key(recipe: Recipe) -> str:
    """The recipe's stage that is a sweep. Raises RecipeError when it has none."""
    for key, entry in recipe.stages.items():
        if isinstance(entry.section, SweepConfig):
            return key
    raise RecipeError(f"{recipe.path} has no stage sweep; add it to `stages` and write a section `sweep:` with `train` and `planner`")


def section_of(recipe: Recipe) -> SweepConfig:
    """Options of the recipe's sweep."""
    section = recipe.stages[sweep_key(recipe)].section
    assert isinstance(section, SweepConfig)
    return section


def before_it_runs(recipe: Recipe, workspace: Workspace) -> tuple[Planner, Situation]:
    """The recipe's planner and what it knows. Raises FeebError where the tokens are not built yet."""
    key = sweep_key(recipe)
    built = {item.stage: item.artifact for item in plan(recipe, workspace, [key]) if item.artifact is not None}
    missing = [stage for stage in recipe.needs(key).values() if stage not in built and stage not in recipe.inputs]
    if missing:
        raise FeebError(f"the vocabulary and the number of tokens are not known yet; run `feeb run {recipe.path} {missing[0]}` first")
    tokens = read_json(finished_inputs(recipe, key, workspace, built)["tokens"].file("tokens.json"))
    section = section_of(recipe)
    return section.planner.build(), situation_of(section, tokens)


@dataclass(frozen=True)
class PlannedRun:
    """One row of a plan. N, D: parameters by the sweep's count, and training tokens. seconds: expected."""

    cell: Cell
    N: float
    D: float
    steps: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.cell.name,
            "round": self.cell.round,
            "heldout": self.cell.heldout,
            "predicted": self.cell.predicted,
            "overrides": self.cell.overrides,
            "N": self.N,
            "D": self.D,
            "steps": self.steps,
            "flops": self.cell.flops,
            "seconds": self.seconds,
        }


def planned(planner: Planner, situation: Situation, speed: Speed) -> list[PlannedRun]:
    """Every run that the planner would make if all went as it expects, in order."""
    rows = []
    for cell in planner.plan(situation):
        cost = situation.measure(cell.overrides)
        size = float(getattr(cost.counts, situation.parameter_count))
        rows.append(PlannedRun(cell, size, cell.flops / cost.flops_per_token, cell.overrides["max_steps"], speed.seconds(size, cell.flops)))
    return rows


@dataclass(frozen=True)
class Speed:
    """Measured training runs: N, FLOPs per second while training, and seconds that a run takes besides."""

    sizes: tuple[float, ...]
    rates: tuple[float, ...]
    overhead: float

    def seconds(self, size: float, flops: float) -> float:
        """Of one run, from the run nearest in size."""
        nearest = min(range(len(self.sizes)), key=lambda i: abs(math.log(self.sizes[i] / size)))
        return flops / self.rates[nearest] + self.overhead


def measured_speed(workspace: Workspace, architecture: str, parameter_count: str) -> Speed | None:
    """From the finished pretraining runs of the workspace with this architecture; None where there are none."""
    rows = []
    for _, artifact in workspace.all(stage="pretrain"):
        if artifact is None or not artifact.metrics.get("tokens_per_second"):
            continue
        metrics = artifact.metrics
        used = (artifact.manifest.get("recipe", {}).get("pretrain") or read_json(artifact.path / "recipe.json").get("pretrain", {})).get("architecture", {})
        if used.get("name") not in (architecture, f"feeb/{architecture}"):
            continue
        rate = metrics["tokens_per_second"] * metrics["flops"] / metrics["tokens"]
        rows.append((float(metrics["parameters"][parameter_count]), rate, metrics["seconds"] - metrics["tokens"] / metrics["tokens_per_second"]))
    if not rows:
        return None
    by_size: dict[float, list[float]] = {}
    for size, rate, _ in rows:
        by_size.setdefault(size, []).append(rate)
    sizes = tuple(sorted(by_size))
    return Speed(sizes, tuple(statistics.median(by_size[size]) for size in sizes), max(0.0, statistics.median(row[2] for row in rows)))


@dataclass(frozen=True)
class Status:
    """Where a sweep stands. runs: rows with name, status, flops, loss, predicted, low, high and reason; heldout: of which runs."""

    path: str
    runs: list[dict[str, Any]]

    @property
    def finished(self) -> int:
        return sum(row["status"] == "done" for row in self.runs)


def status(folder: Artifact | Any) -> Status:
    """Of a sweep's folder, finished or not; the ledger is only read."""
    path = folder.path if isinstance(folder, Artifact) else folder
    predictions = read_predictions(path / "ledger.sqlite")
    rows = []
    for record in read_records(path / "ledger.sqlite"):
        prediction = predictions.get(record.name, {})
        loss = record.result.get("loss")
        row: dict[str, Any] = {"name": record.name, "status": record.status, "heldout": record.heldout, "flops": record.flops, "loss": loss}
        row |= {"predicted": prediction.get("loss"), "low": prediction.get("low"), "high": prediction.get("high"), "reason": record.reason}
        row["error"] = prediction["loss"] / loss - 1 if loss and prediction.get("loss") else None
        rows.append(row)
    return Status(str(path), rows)


def recommend(artifact: Artifact, flops: float, name: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe, as plain values, that trains the best size for `flops`, and the forecast: N, D, loss and its interval.

    artifact: a finished sweep. The size is the nearest that the planner can make, its steps come from that size's exact cost and its
    learning rates from the sweep's probe. Raises FeebError where the sweep has no law.
    """
    recipe = from_resolved(read_json(artifact.path / "recipe.json"), artifact.path / "recipe.json")
    section = section_of(recipe)
    document = read_json(artifact.file("law.json"))
    points, _ = points_of_sweep(artifact.path)
    tokens = read_json(artifact.path.parents[1] / _input_path(artifact, "tokens") / "tokens.json")
    planner: Planner = section.planner.build()
    situation = dataclasses.replace(
        situation_of(section, tokens), points={p.name: p for p in points}, ended=frozenset(p.name for p in points) | {d["name"] for d in document["diverged"]}
    )
    law = section.law.build()
    fit = law.fit([*planner.fitted(points), *(p for p in points if p.heldout)], section.parameter_count, section.bootstrap, section.seed)
    size = best_size(law, fit, flops, cost_of_a_token(points, section.parameter_count))
    overrides = planner.sized(situation, size, flops)
    cost = situation.measure(overrides)
    number, seen = float(getattr(cost.counts, section.parameter_count)), flops / cost.flops_per_token
    overrides = {**overrides, "max_steps": max(1, round(flops / cost.flops_per_step))}
    overrides |= situation.scale_lr(overrides, planner.lr_factor(situation, number, seen))
    train = with_overrides(section.train, overrides)
    values = {key: getattr(train, key) for key in type(train).model_fields}
    entry = StageEntry("pretrain", recipe.registry.resolve("stages", "feeb/pretrain"), PretrainConfig.model_validate(values))  # type: ignore[arg-type]
    key = sweep_key(recipe)
    stages = {stage: recipe.stages[stage] for stage in stages_for(recipe, [key]) if stage != key}
    made = dataclasses.replace(recipe, name=name or f"{recipe.name}-{flops:.3g}".replace("+", ""), stages=stages | {"pretrain": entry})
    prediction = law.predict(fit, number, seen)
    forecast = {"flops": overrides["max_steps"] * cost.flops_per_step, "N": number, "D": seen, **dataclasses.asdict(prediction), "overrides": overrides}
    return made.resolved(), forecast


def _input_path(artifact: Artifact, name: str) -> str:
    return str(artifact.manifest["inputs"][name]["path"])


def total(rows: Sequence[PlannedRun]) -> Mapping[str, float]:
    """FLOPs and seconds of a plan."""
    return {"flops": sum(row.cell.flops for row in rows), "seconds": sum(row.seconds for row in rows)}
