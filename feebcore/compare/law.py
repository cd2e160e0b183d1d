"""A comparison of two laws: the runs of the first recipe's sweep, trained by both sides, and their ratios.

The planner is asked for the first side alone; the second trains what was chosen for it: the same sizes, steps, batches, seeds and data order. What it has of
its own are its options and its learning rates, times the factors that the planner chose. Every run is an artifact of stage pretrain, so those of
finished sweeps are reused where they are the same, and a killed comparison continues. Two finished sweeps of one planner are compared as they are.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from feebcore.artifacts import Artifact, StageOutput, Workspace, read_artifact
from feebcore.compare import law_page, law_report
from feebcore.compare.plan import ORDER_KEYS, check_same_data, first_difference, names_of, short
from feebcore.compare.planned import built_of, shared_items
from feebcore.compare.run import KIND, shared_stages
from feebcore.compare.speed import tried_speed
from feebcore.config import PartConfig, identity_of
from feebcore.errors import DataError, RecipeError, StageFailed
from feebcore.files import digest_of, read_json, write_atomic, write_json
from feebcore.parts import Part
from feebcore.protocols import Cell
from feebcore.provenance import describe_plugins
from feebcore.recipe import Recipe, StageEntry, from_resolved, unusable_name
from feebcore.run.artifact import Made, build_artifact
from feebcore.run.contracts import require_checked, unchecked_in, unchecked_note
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import identity
from feebcore.scaling.analysis import points_of_sweep
from feebcore.scaling.cells import measure_with, with_overrides
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.paired import Pair
from feebcore.scaling.planning import Planner, Situation
from feebcore.scaling.points import Point
from feebcore.scaling.sweep import cell_run, measurement, point_of, situation_of
from feebcore.scaling.use import before_it_runs, measured_speed, section_of, sweep_key
from feebcore.study.executors import ProgressFn
from feebcore.study.ledger import Ledger
from feebcore.study.planned import rows_of
from feebcore.study.run import run_study
from feebcore.study.runs import RunRecord, RunSpec, missing
from feebcore.train.scaled import lr_overrides

REVISION = 1
"""Of what a comparison of laws means; a higher one makes finished comparisons be judged anew."""

SAME_SWEEP = ("parameter_count", "eval_documents", "seed")
SAME_TRAINING = (*ORDER_KEYS, "seed")
ROUNDING = 1e-4  # learning rates are written with six digits


class LawSettings(PartConfig):
    """What to compare laws by."""

    target: float = Field(
        0.0, ge=0, description="training FLOPs at which the laws are compared; 0: the first recipe's sweep.target, else those of the dearest run"
    )
    name: str = Field("", description="name of the comparison; empty: the names of the recipes")

    @field_validator("target")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError(f"{value:g}: a number of training FLOPs")
        return value

    @field_validator("name")
    @classmethod
    def _folder(cls, value: str) -> str:
        if value and (problem := unusable_name(value)):
            raise ValueError(problem)
        return value


def command_of(references: Sequence[str], settings: LawSettings, overrides: Sequence[str], quick: bool) -> str:
    """The command that asks for this, but for how it is run."""
    words = ["feeb", "compare", "--law", *references, *(["--quick"] if quick else [])]
    words += [*(["--target", f"{settings.target:g}"] if settings.target else []), *(["--name", settings.name] if settings.name else [])]
    return shlex.join([*words, *(word for text in overrides for word in ("--set", text))])


@dataclass(frozen=True)
class Side:
    """One of the two recipes; `key` is its stage sweep, whose target is that of the comparison."""

    name: str
    recipe: Recipe
    key: str

    @property
    def section(self) -> SweepConfig:
        return section_of(self.recipe)

    def inputs(self, workspace: Workspace, shared: Mapping[str, Artifact]) -> dict[str, Artifact]:
        return finished_inputs(self.recipe, self.key, workspace, shared)


def sides_of(recipes: Sequence[Recipe], settings: LawSettings) -> tuple[Side, Side]:
    """The recipes, the baseline first. Raises RecipeError where their runs cannot be paired, naming file and key."""
    if len(recipes) != 2:
        raise RecipeError(f"--law compares two recipes, the baseline first (or one with two `variants:`); here are {len(recipes)}")
    base, other = recipes
    key = sweep_key(base)
    if sweep_key(other) != key:
        raise RecipeError(f"{other.path}: its sweep is stage {sweep_key(other)!r}, and that of {base.path} is {key!r}; give them one name")
    check_same_data(recipes, key)
    check_pairable(section_of(base), section_of(other), str(base.path), str(other.path), key)
    target = settings.target or section_of(base).target
    first, second = (Side(name, _with_target(recipe, key, target), key) for name, recipe in zip(names_of(recipes), recipes, strict=True))
    return first, second


def _with_target(recipe: Recipe, key: str, target: float) -> Recipe:
    entry = recipe.stages[key]
    return dataclasses.replace(recipe, stages=recipe.stages | {key: StageEntry(key, entry.spec, section_of(recipe).model_copy(update={"target": target}))})


def check_pairable(first: SweepConfig, second: SweepConfig, one: str, other: str, key: str) -> None:
    """Raises RecipeError naming the first key in which runs of the same slot would not be pairs. one, other: what the sections belong to."""
    if first.planner.build().varies != "sizes":
        raise RecipeError(f"{key}.planner: {first.planner.name} in {one} does not vary the size of the model; laws are compared over sizes and tokens")
    values: list[tuple[str, Any, Any]] = [(name, getattr(first, name), getattr(second, name)) for name in SAME_SWEEP]
    values += [(f"train.{name}", getattr(first.train, name), getattr(second.train, name)) for name in SAME_TRAINING]
    plain = [(name, *(value.dump() if isinstance(value, Part) else value for value in both)) for name, *both in values]
    difference = first_difference({"planner": first.planner.dump()}, {"planner": second.planner.dump()})
    differences = [*([difference] if difference else []), *(row for row in plain if row[1] != row[2])]
    if differences:
        name, ours, its = differences[0]
        raise RecipeError(
            f"{key}.{name}: {short(ours)} in {one} and {short(its)} in {other}; runs are paired by size, tokens, seed and data order, so make them equal"
        )
    if identity_of(first.train) == identity_of(second.train):
        raise RecipeError(f"{one} and {other} train the very same runs, so there is nothing to compare; change an option of {key}.train in one of them")


def cell_for(cell: Cell, first: SweepConfig, second: SweepConfig) -> Cell:
    """What the second side trains in the slot of the first's `cell`: the same overrides, learning rates as multiples of its own. Raises RecipeError."""
    rates = lr_overrides(first.train.optimizer, 1.0)
    factors = {key: value / rates[key] for key, value in cell.overrides.items() if rates.get(key)}
    overrides = {key: value for key, value in cell.overrides.items() if key not in rates}
    if not factors:
        return dataclasses.replace(cell, overrides=overrides)
    own = lr_overrides(with_overrides(second.train, overrides).optimizer, 1.0)
    common = next(iter(factors.values()))
    if len(factors) == sum(rate > 0 for rate in rates.values()) and max(factors.values()) < (1 + ROUNDING) * min(factors.values()):
        factors = {key: factors.get(key, common) for key in own}
    elif unknown := sorted(set(factors) - set(own)):
        raise RecipeError(
            f"planner: it sets {', '.join(unknown)} at {cell.name}, which the second recipe's optimizer does not have; let it set no learning rate"
        )
    return dataclasses.replace(cell, overrides=overrides | {key: float(f"{own[key] * factor:.6g}") for key, factor in factors.items()})


def compare_laws(
    recipes: Sequence[Recipe], settings: LawSettings, workspace: Workspace, on_progress: ProgressFn | None = None, command: str = "", unchecked: bool = False
) -> Artifact:
    """The finished comparison: its artifact has result.json, verdict.txt, page.html and page.md with their figures.

    Runs are built by the executor that was chosen (feebcore.study.executing), else in this process. Raises RecipeError where the recipes
    cannot be paired, before anything is built; Interrupted when asked to stop; StageFailed where runs failed for good, after the page that says so is
    written.
    """
    sides = sides_of(recipes, settings)
    for overrides in sides[0].section.planner.build().overrides():
        cell_for(Cell(str(overrides), dict(overrides), 0.0), sides[0].section, sides[1].section)
    require_checked([side.recipe for side in sides], [sides[0].key], workspace, on_progress, unchecked)
    publish = on_progress or (lambda row: None)
    shared = shared_stages([side.recipe for side in sides], sides[0].key, workspace, publish)
    name = name_of([side.name for side in sides], settings)

    def make(out: StageOutput, environment: Mapping[str, Any]) -> Made:
        with LawStudy(sides, workspace, shared, out) as study:
            result = study.run()
            inputs = shared | study.artifacts()
        description = str(sides[0].recipe.data.get("description", ""))
        plugins = {digest_of(p): p for side in sides for p in describe_plugins(side.recipe, side.key)}
        return _made(out, result, name, description, command, environment, inputs, settings, list(plugins.values()))

    resolved: dict[str, Any] = {"name": name, "plugins": sorted({str(p) for side in sides for p in side.recipe.plugins})}
    resolved |= {KIND: settings.model_dump(mode="json"), "recipes": {side.name: side.recipe.resolved() for side in sides}}
    return build_artifact(workspace, KIND, name, study_identity(sides, workspace, shared), make, on_progress, resolved, shared)


def compare_sweeps(folders: Sequence[Path], settings: LawSettings, workspace: Workspace, on_progress: ProgressFn | None = None, command: str = "") -> Artifact:
    """The same for two finished sweeps, the baseline first: nothing is trained. Raises RecipeError or DataError where their runs cannot be paired."""
    if len(folders) != 2:
        raise DataError(f"--law compares two sweeps, the baseline first; here are {len(folders)}")
    first, second = (_finished(folder) for folder in folders)
    recipes = [from_resolved(read_json(artifact.path / "recipe.json"), artifact.path / "recipe.json") for artifact in (first, second)]
    sections = [section_of(recipe) for recipe in recipes]
    for name in ("tokens", "tokenizer"):
        if first.manifest["inputs"][name]["digest"] != second.manifest["inputs"][name]["digest"]:
            raise DataError(f"{first.path.name} and {second.path.name} do not have the same {name}, so their losses are not of the same text")
    check_pairable(sections[0], sections[1], first.path.name, second.path.name, sweep_key(recipes[0]))
    names = [recipe.name for recipe in recipes]
    names = names if names[0] != names[1] else [first.path.name, second.path.name]
    name = name_of(names, settings)
    target = settings.target or sections[0].target

    def make(out: StageOutput, environment: Mapping[str, Any]) -> Made:
        points = [{point.name: point for point in points_of_sweep(artifact.path)[0]} for artifact in (first, second)]
        slots = [name for name, point in points[0].items() if name in points[1] and points[1][name].budget == point.budget]
        alone = {side: [slot for slot in own if slot not in slots] for side, own in zip(names, points, strict=True)}
        lost = [f"unpaired: {', '.join(slots)} of {side} {'has' if len(slots) == 1 else 'have'} no partner" for side, slots in alone.items() if slots]
        diverged = [
            f"diverged: {row['name']} of {side}" for side, a in zip(names, (first, second), strict=True) for row in read_json(a.file("law.json"))["diverged"]
        ]
        pairs = _usable([Pair(slot, points[0][slot], points[1][slot]) for slot in slots], sections[0].planner.build())
        result = law_report.make(names, pairs, points, sections[0].parameter_count, target, sections[0].seed, [*lost, *diverged])
        result |= {"runs": [], "missing": [], "unchecked": []}
        inputs = dict(zip(names, (first, second), strict=True))
        return _made(out, result, name, "", command, environment, inputs, settings, [])

    sides = [{"name": side, "digest": artifact.digest} for side, artifact in zip(names, (first, second), strict=True)]
    return build_artifact(workspace, KIND, name, {"compare laws of sweeps": REVISION, "target": target, "sides": sides}, make, on_progress)


def _finished(folder: Path) -> Artifact:
    artifact = read_artifact(folder)
    if artifact is None or "law" not in artifact.makes:
        raise DataError(f"{folder} is not a finished sweep")
    return artifact


def _made(
    out: StageOutput,
    result: dict[str, Any],
    name: str,
    description: str,
    command: str,
    environment: Mapping[str, Any],
    inputs: Mapping[str, Artifact],
    settings: LawSettings,
    plugins: list[dict[str, str]],
) -> Made:
    write_json(out.path / "result.json", result)
    write_atomic(out.path / "verdict.txt", law_report.text(result))
    pictures = law_page.pictures(result)
    for picture in pictures:
        write_atomic(out.path / f"{picture.name}.png", picture.png)
    write_atomic(out.path / "page.md", law_page.text(result, name, description, command, environment, pictures))
    write_atomic(out.path / "page.html", law_page.html(result, name, description, command, pictures))
    if result["missing"]:
        raise StageFailed(f"{KIND}: {'; '.join(result['missing'])}. {out.path / 'page.md'} is based on the other runs; run the same command to retry")
    out.content("result.json")
    return Made(law_report.headline(result), inputs, settings.model_dump(mode="json"), plugins)


def name_of(sides: Sequence[str], settings: LawSettings) -> str:
    return settings.name or f"{'-vs-'.join(sides)[:76]}-law"


def study_identity(sides: Sequence[Side], workspace: Workspace, shared: Mapping[str, Artifact]) -> dict[str, Any]:
    """All that decides the outcome, but for the machine: plain JSON."""
    entries = [{"name": side.name, "identity": identity(side.recipe, side.key, side.inputs(workspace, shared))} for side in sides]
    return {"compare laws": REVISION, "target": sides[0].section.target, "recipes": entries}


class LawStudy:
    """The runs of one comparison in one folder. Use as a context manager: it holds the ledger."""

    def __init__(self, sides: tuple[Side, Side], workspace: Workspace, shared: Mapping[str, Artifact], out: StageOutput) -> None:
        self.sides, self.workspace, self.shared, self.out = sides, workspace, shared, out
        tokens = sides[0].inputs(workspace, shared)["tokens"]
        self.vocab_size: int = read_json(tokens.file("tokens.json"))["vocab_size"]
        self.planner: Planner = sides[0].section.planner.build()
        self.situation = situation_of(sides[0].section, tokens.path)
        self.slots: list[Cell] = []
        self.ledger = Ledger(out.path / "ledger.sqlite")

    def __enter__(self) -> LawStudy:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    def run(self) -> dict[str, Any]:
        """Everything; the result as plain JSON."""
        records = run_study(self.propose, self.ledger, self.workspace, self.shared, self.record, self.forward, lambda: self.out.stop_requested, self.on_ended)
        by_name = {record.name: record for record in records}
        points = [self.points(side, records) for side in self.sides]
        slots = [cell.name for cell in self.slots if all(cell.name in side for side in points)]
        pairs = _usable([Pair(slot, points[0][slot], points[1][slot]) for slot in slots], self.planner)
        section = self.sides[0].section
        lost = [f"diverged: {record.name}, so its pair is left out: {record.reason}" for record in records if record.status == "diverged"]
        epochs = max((record.result.get("epochs", 0.0) for record in records), default=0.0)
        lost += [f"repeated_data: a run made {epochs:.1f} epochs over the corpus; the laws are for fresh data"] if epochs > 1.0 else []
        notes = [*lost, *self.planner.notes(self.after(by_name))]
        result = law_report.make([side.name for side in self.sides], pairs, points, section.parameter_count, section.target, section.seed, notes)
        unchecked = unchecked_in(self.artifacts().values())
        result |= {"runs": [_row(record) for record in records], "missing": missing(records), "unchecked": unchecked}
        return result | {"verdict": [*unchecked_note(unchecked), *result["verdict"]], "notes": missing(records) + result["notes"]}

    def propose(self, records: Mapping[str, RunRecord]) -> list[RunSpec]:
        """Both sides' runs of every slot up to the first round that the first side has not ended."""
        situation = self.after(records)
        cells = self.planner.propose(situation)
        current = min((cell.round for cell in cells if cell.name not in situation.ended), default=math.inf)
        self.slots = [cell for cell in cells if cell.round <= current]
        return specs_of(self.sides, cells_of(self.sides, self.slots, self.vocab_size))

    def after(self, records: Mapping[str, RunRecord]) -> Situation:
        """What the planner knows once these runs have ended: those of the first side."""
        first = self.sides[0]
        ended = frozenset(name.removeprefix(f"{first.name}/") for name, r in records.items() if name.startswith(f"{first.name}/") and r.ended)
        return dataclasses.replace(self.situation, points=self.points(first, records.values()), ended=ended)

    def points(self, side: Side, records: Iterable[RunRecord]) -> dict[str, Point]:
        """The side's measured runs by slot."""
        own = [(record.name.removeprefix(f"{side.name}/"), record) for record in records if record.name.startswith(f"{side.name}/") and record.status == "done"]
        return {slot: dataclasses.replace(point_of(record), name=slot) for slot, record in own}

    def record(self, spec: RunSpec, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the laws need of a run. Raises Diverged when its loss is no measurement."""
        artifact = artifacts["pretrain"]
        return measurement(artifact.metrics, self.vocab_size) | {"path": str(artifact.path)}

    def artifacts(self) -> dict[str, Artifact]:
        """Of every run that was made, by the run's name: the comparison's inputs, which gc then keeps."""
        artifacts = {record.name: self.workspace.find("pretrain", record.id) for record in self.ledger.records()}
        return {name: artifact for name, artifact in artifacts.items() if artifact is not None}

    def forward(self, row: dict[str, Any]) -> None:
        """Progress of runs to whoever follows the comparison; their own logs stay in their folders."""
        if row["kind"] == "progress":
            self.out.event("progress", **{k: v for k, v in row.items() if k not in ("kind", "time")})

    def on_ended(self, record: RunRecord) -> None:
        counts = self.ledger.counts()
        words = f"{record.status}: {record.reason}"
        if record.status == "done":
            words = f"loss {record.result['loss']:.4f} nats per token, {record.result['seconds']:.1f} s"
        self.out.log(f"run {record.name}: {words} ({counts['done'] + counts['failed'] + counts['diverged']} of {sum(counts.values())} runs so far)")


def cells_of(sides: tuple[Side, Side], cells: Sequence[Cell], vocab_size: int) -> tuple[list[Cell], list[Cell]]:
    """What each side trains in every slot of the first's `cells`, with its own exact FLOPs; each run is trained from its beginning, as sides may differ
    in what their runs share."""
    cells = [dataclasses.replace(cell, original="", shared_steps=0) for cell in cells]
    first, second = (side.section for side in sides)
    measure = measure_with(second.train, vocab_size)
    others = []
    for cell in cells:
        other = cell_for(cell, first, second)
        others.append(dataclasses.replace(other, flops=measure(other.overrides).flops_per_step * other.overrides["max_steps"]))
    return cells, others


def specs_of(sides: tuple[Side, Side], cells: tuple[Sequence[Cell], Sequence[Cell]]) -> list[RunSpec]:
    """Both runs of every slot, next to each other; every other slot in reverse, so that a machine that slows down slows down both sides."""
    specs = []
    for number, both in enumerate(zip(*cells, strict=True)):
        pair = []
        for side, cell in zip(sides, both, strict=True):
            spec = cell_run(side.section, side.recipe, side.key, cell, [cell])
            pair.append(dataclasses.replace(spec, name=f"{side.name}/{cell.name}", role="baseline" if side is sides[0] else "candidate"))
        specs += pair[:: -1 if number % 2 else 1]
    return specs


def _usable(pairs: Sequence[Pair], planner: Planner) -> list[Pair]:
    """Those that the planner fits whatever they measured. A trial that is fitted for having the least loss of several on one side is no fair pair."""
    rising, falling = ([dataclasses.replace(pair.first, loss=(1.0 + i) ** sign) for i, pair in enumerate(pairs)] for sign in (1, -1))
    fitted = {point.name for point in planner.fitted(rising)} & {point.name for point in planner.fitted(falling)}
    return [pair for pair in pairs if pair.name in fitted or pair.first.heldout]


def _row(record: RunRecord) -> dict[str, Any]:
    numbers = {key: record.result.get(key) for key in ("loss", "bits_per_byte", "tokens", "flops", "steps", "seconds", "path")}
    return {"name": record.name, "role": record.role, "status": record.status, "reason": record.reason, "overrides": record.overrides, **numbers}


def finished_law_comparison(recipes: Sequence[Recipe], settings: LawSettings, workspace: Workspace) -> Artifact | None:
    """The artifact of this comparison, None while it or what it needs is not finished."""
    sides = sides_of(recipes, settings)
    shared = built_of(shared_items(sides[0].recipe, sides[0].key, workspace))
    return None if shared is None else workspace.find(KIND, digest_of(study_identity(sides, workspace, shared))[:12])


def planned_pairs(recipes: Sequence[Recipe], settings: LawSettings, workspace: Workspace, jobs: int = 1) -> list[dict[str, Any]]:
    """A row for every slot: N, FLOPs, expected seconds and status of the first and of the second run, steps and D. Writes nothing.

    Of a planner that depends on results, what it expects. Raises RecipeError where the recipes cannot be paired, FeebError where the tokens are not
    built yet.
    """
    sides = sides_of(recipes, settings)
    planner, situation = before_it_runs(sides[0].recipe, workspace)
    shared = built_of(shared_items(sides[0].recipe, sides[0].key, workspace))
    assert shared is not None
    tokens = sides[0].inputs(workspace, shared)["tokens"]
    cells = cells_of(sides, planner.plan(situation), read_json(tokens.file("tokens.json"))["vocab_size"])
    status = {row["run"]: row["status"] for row in rows_of(specs_of(sides, cells), workspace, shared)}
    columns = [_planned(side, own, situation_of(side.section, tokens.path), status, workspace, jobs) for side, own in zip(sides, cells, strict=True)]
    rows = []
    for cell, first, second in zip(cells[0], *columns, strict=True):
        row: dict[str, Any] = {"run": cell.name, "round": cell.round, "heldout": cell.heldout, "steps": cell.overrides["max_steps"], "D": first.pop("D")}
        rows.append(row | {key: [first[key], second[key]] for key in first})
    return rows


def _planned(side: Side, cells: Sequence[Cell], situation: Situation, status: Mapping[str, str], workspace: Workspace, jobs: int) -> list[dict[str, Any]]:
    section = side.section
    speed = measured_speed(workspace, section.train.architecture.spec.name, section.parameter_count)
    speed = speed or tried_speed(side.recipe, workspace, situation, cells, jobs)
    rows = []
    for cell in cells:
        cost = situation.measure(cell.overrides)
        size = float(getattr(cost.counts, section.parameter_count))
        row = {"N": size, "flops": cell.flops, "seconds": speed.seconds(size, cell.flops), "status": status[f"{side.name}/{cell.name}"]}
        rows.append(row | {"D": cell.flops / cost.flops_per_token})
    return rows
