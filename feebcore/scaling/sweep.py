"""The sweep itself, a study: cells are proposed, fitted by a law that predicts the held-out ones, which are proposed then; the report.

Each cell is an artifact of stage pretrain in the workspace, so that no cell is trained twice and each can be opened.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from feebcore.artifacts import Artifact, StageOutput, Workspace
from feebcore.errors import NO_VALIDATION_TEXT, DataError, Diverged, StageFailed, plural
from feebcore.files import digest_of, finite, read_json, write_atomic, write_json
from feebcore.parts import resolve_part
from feebcore.protocols import Cell
from feebcore.recipe import Recipe, StageEntry, flat
from feebcore.report.sweep_page import write_page
from feebcore.run.inputs import finished_inputs
from feebcore.run.plan import stages_for
from feebcore.scaling import isoflop
from feebcore.scaling.allocation import best_size, cost_of_a_token
from feebcore.scaling.analysis import by_parameter_count, residual_rows, second_opinion
from feebcore.scaling.cells import measure_with, scale_lr_of, shared_steps_of, with_overrides
from feebcore.scaling.checks import counts_differ, methods_differ
from feebcore.scaling.config import SweepConfig
from feebcore.scaling.mixture import shares_in
from feebcore.scaling.planning import Planner, Situation
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Point
from feebcore.scaling.rollouts import error_per_reach, widening
from feebcore.study.ledger import Ledger
from feebcore.study.planned import rows_of, unknown
from feebcore.study.run import run_study
from feebcore.study.runs import RunRecord, RunSpec, missing, run_id
from feebcore.train.pretrain_config import PretrainConfig
from feebcore.train.scaled import lr_overrides

CURVE_POINTS = 60


class Sweep:
    """One sweep in one folder. Use as a context manager: it holds the ledger. section: the one of `recipe` that is run."""

    def __init__(self, section: SweepConfig, recipe: Recipe, inputs: Mapping[str, Artifact], out: StageOutput) -> None:
        self.section, self.recipe, self.out = section, recipe, out
        self.key = next(key for key, entry in recipe.stages.items() if isinstance(entry.section, SweepConfig))
        self.workspace = Workspace(out.path.parents[1])
        self.built = {provider: inputs[name] for name, provider in recipe.needs(self.key).items()}
        tokens = read_json(inputs["tokens"].file("tokens.json"))
        self.vocab_size, self.validation_documents = tokens["vocab_size"], tokens["validation"]["documents"]
        self.planner: Planner = section.planner.build()
        self.situation = situation_of(section, inputs["tokens"].path)
        self.law: Law = self.situation.law
        self.fits: dict[str, tuple[LawFit | None, str]] = {}
        self.cells: list[Cell] = []
        self.total = 0.0
        self.ledger = Ledger(out.path / "ledger.sqlite")

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    def run(self) -> dict[str, Any]:
        """Everything; returns the metrics of the stage. Raises DataError when there is no validation text to measure cells on, and
        StageFailed when cells failed for good, after law.json is written from the others."""
        if not self.validation_documents:
            raise DataError(f"sweep: the validation split is empty, so no run can be measured; {NO_VALIDATION_TEXT}")
        self.total = sum(cell.flops for cell in self.planner.plan(self.situation))
        self.publish({})
        records = run_study(self.propose, self.ledger, self.workspace, self.built, self.record, self.forward, lambda: self.out.stop_requested, self.on_ended)
        places = {cell.name: place for place, cell in enumerate(self.cells)}
        records.sort(key=lambda record: places[record.name])  # branches were planned when their original run ended: the law is not to depend on that
        self.write_cells(records)  # once more: a kill may have come between the ledger's last entry and this file
        found = {record.name: self.workspace.find("pretrain", record.id) for record in records}
        self.out.rests_on({f"runs/{name}": artifact for name, artifact in found.items() if artifact is not None})
        metrics = self.report(records)
        if sentences := missing(records):
            raise StageFailed(f"sweep: {'; '.join(sentences)}. {self.out.path / 'law.json'} is based on the other runs; run the same command to retry")
        return metrics

    def propose(self, records: Mapping[str, RunRecord]) -> list[RunSpec]:
        """The runs up to the first round that has not ended; before a round starts, what is predicted of it is written down."""
        situation = self.situation_after(records.values())
        ended, points = situation.ended, situation.points
        self.cells = self.planner.propose(situation)
        current = min((cell.round for cell in self.cells if cell.name not in ended), default=math.inf)
        chosen = [cell for cell in self.cells if cell.round <= current and (not cell.original or cell.original in ended)]
        specs = [cell_run(self.section, self.recipe, self.key, cell, self.cells) for cell in chosen]
        known = self.ledger.predictions()
        if fresh := [spec for spec, cell in zip(specs, chosen, strict=True) if cell.predicted and cell.round == current and spec.name not in known]:
            self.predict(records, fresh, [points[cell.name] for cell in self.cells if cell.round < current and cell.name in points])
        return specs

    def record(self, spec: RunSpec, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """What the law needs of a cell. Raises Diverged when its loss is no measurement."""
        metrics = artifacts["pretrain"].metrics
        numbers = measurement(metrics, self.vocab_size)
        if not (weights := self.planner.source_weights()):
            return numbers
        losses = metrics.get("val_loss_by_source") or dict.fromkeys(self.situation.scored_documents, numbers["loss"])  # of a split that has one source
        mean = sum(weight * losses[name] for name, weight in weights.items()) / sum(weights.values())
        return numbers | {"loss": mean, "source_losses": {name: losses[name] for name in weights}, "source_weights": weights}

    def points(self, records: Iterable[RunRecord]) -> list[Point]:
        """The cells that were measured."""
        return [point_of(record) for record in records if record.status == "done"]

    def fit(self, points: Sequence[Point]) -> tuple[LawFit | None, str]:
        """The law through these points, or why there is none."""
        key = digest_of([point.to_dict() for point in points])
        if key not in self.fits:
            try:
                self.fits[key] = self.law.fit(points, self.section.parameter_count, self.section.bootstrap, self.section.seed), ""
            except NotIdentifiable as error:
                self.out.log(f"no law: {error}")
                self.fits[key] = None, str(error)
        return self.fits[key]

    def predict(self, records: Mapping[str, RunRecord], specs: Sequence[RunSpec], points: Sequence[Point]) -> None:
        """Write down, for good, what each of these runs will reach, with the law and the points that say so, before it starts."""
        points = self.planner.fitted(points)
        fit = self.fit(points)[0]
        predictions: dict[str, dict[str, Any]] = {}
        for spec in specs:
            expected = expected_point(spec.name, spec.overrides, spec.flops, self.situation)
            tokens, size = expected.tokens, expected.size(self.section.parameter_count)
            own = run_id(spec.recipe, spec.stages, self.workspace, self.built)
            begun = spec.name in records or bool(self.workspace.folders("pretrain", own))
            entry: dict[str, Any] = {"name": spec.name, "N": size, "D": tokens, "flops": spec.flops, "heldout": spec.heldout, "begun": begun}
            if points:
                near = min(points, key=lambda p: distance(p, size, tokens, spec.flops, self.section.parameter_count))
                entry |= {"nearest": near.name, "nearest_loss": near.loss}
            if fit is not None:
                prediction = self.law.predict_point(fit, expected)
                entry |= dataclasses.asdict(prediction) | {"law": fit.to_dict()}
            entry |= {"points": [p.name for p in points], "points_digest": digest_of([p.to_dict() for p in points])}
            predictions[spec.name] = finite(entry)
        self.ledger.predict(predictions)
        write_json(self.out.path / "predictions.json", list(self.ledger.predictions().values()))
        for entry in predictions.values():
            if "loss" in entry:
                self.out.log(f"predicted for {entry['name']}: {entry['loss']:.4f} nats per token" + _between(entry))

    def report(self, records: Sequence[RunRecord]) -> dict[str, Any]:
        """law.json, the sweep's page and the metrics of the manifest."""
        points = self.points(records)
        fitted = self.planner.fitted(points)
        fit, refusal = self.fit(fitted)
        outcomes = [_outcome(entry, {r.name: r for r in records}[name]) for name, entry in self.ledger.predictions().items()]
        heldout = [outcome for outcome in outcomes if outcome["heldout"]]
        curves = isoflop.minima([p for p in points if not p.heldout], self.section.parameter_count)
        law = _summary(fit, self.section.law.name, self.section.parameter_count, refusal)
        allocation, problem = _allocation(curves)
        law["flags"] += self.doubts(records, curves)
        if fit and allocation and "a" in fit.parameters:
            law["flags"] += methods_differ(fit.parameters["a"], allocation["exponent"])
        of_sizes = self.planner.varies == "sizes"
        counts = by_parameter_count(self.law, fitted, self.section.bootstrap, self.section.seed) if of_sizes else []
        law["flags"] += counts_differ({row["parameter_count"]: row["parameters"]["a"] for row in counts if "a" in row["parameters"]})
        forecast = self.forecast(points)
        diverged = [{"name": r.name, "reason": r.reason} for r in records if r.status == "diverged"]
        saved = sum(r.result["flops"] * r.result.get("began_at_step", 0) / r.result["steps"] for r in records if r.status == "done")
        document = {
            "law": law,
            "fit": fit.to_dict() if fit else None,
            "points": [p.to_dict() for p in points],
            "error_per_reach": error_per_reach(fit) if fit else None,
            "residuals": residual_rows(self.law, fit, fitted) if fit and of_sizes else [],
            "diverged": diverged,
            "missing": missing(records),
            "heldout": heldout,
            "predicted": [outcome for outcome in outcomes if not outcome["heldout"]],
            "forecast": forecast,
            "saved_flops": saved,
            "isoflop": {"minima": [m.to_dict() for m in curves], "allocation": allocation, "problem": problem},
            "frontier": self.frontier(fitted, forecast) if of_sizes else None,
            "parameter_counts": counts,
            "lr_probe": self.planner.lr_probe(self.situation_after(records)),
            "curves": _curves(self.law, fit, points) if fit else [],
            "method": self.method(points),
        }
        if fit is not None:
            document |= self.planner.conclusion(self.situation_after(records), fit)
        write_json(self.out.path / "law.json", finite(document))
        self.out.log(f"report: {write_page(self.out.path)}")
        errors = [h["relative_error"] for h in heldout if h.get("relative_error") is not None]
        guesses = [h["nearest_error"] for h in heldout if h.get("nearest_error") is not None]
        metrics = {
            "law": law,
            "heldout_relative_error": float(np.mean(errors)) if errors else None,
            "nearest_run_error": float(np.mean(guesses)) if guesses else None,
            "heldout": heldout,
            "runs": len(records),
            "diverged": len(diverged),
            "flops": float(sum(p.flops for p in points)) - saved,
            "saved_flops": saved,
            "seconds": round(sum(r.result.get("seconds", 0.0) for r in records), 1),
            "isoflop_minima": [m.to_dict() for m in curves],
        }
        return finite(metrics)

    def doubts(self, records: Sequence[RunRecord], curves: Sequence[isoflop.Minimum]) -> list[str]:
        """Flags that the law itself cannot know."""
        flags = []
        if diverged := [r.name for r in records if r.status == "diverged"]:
            flags.append(f"diverged_runs: {plural(len(diverged), 'run')} diverged, not in the fit ({', '.join(diverged)})")
        if edges := [m for m in curves if m.problem]:
            flags.append(f"isoflop_edges: {len(edges)} of {len(curves)} budgets have no interior minimum")
        epochs = max((r.result.get("epochs", 0.0) for r in records), default=0.0)
        if epochs > 1.0 and self.planner.varies == "sizes":
            flags.append(f"repeated_data: a run made {epochs:.1f} epochs over the corpus; the law is for fresh data")
        return flags + self.planner.notes(self.situation_after(records))

    def situation_after(self, records: Iterable[RunRecord]) -> Situation:
        """What the planner knows once these runs have ended."""
        records = list(records)
        points = {point.name: point for point in self.points(records)}
        return dataclasses.replace(self.situation, points=points, ended=frozenset(r.name for r in records if r.ended))

    def forecast(self, points: Sequence[Point]) -> dict[str, Any] | None:
        """The loss at `target`, at the best size, by the law through all runs, held-out ones included; None without a target or a law."""
        heldout = [p for p in points if p.heldout]
        fit = self.fit([*self.planner.fitted(points), *heldout])[0]
        if not self.section.target or fit is None or self.planner.varies != "sizes":
            return None
        cost = cost_of_a_token(points, self.section.parameter_count)
        size = best_size(self.law, fit, self.section.target, cost)
        tokens = self.section.target / cost(size)
        prediction = self.law.predict(fit, size, tokens)
        reach = self.section.target / max(p.flops for p in points)
        row = {"flops": self.section.target, "N": size, "D": tokens, "reach": reach, **dataclasses.asdict(prediction), "parameters": dict(fit.parameters)}
        return row | {"interval": widening(fit, prediction, 6.0 * size * tokens), "learning_rates": self.learning_rates(points, size, tokens)}

    def learning_rates(self, points: Sequence[Point], size: float, tokens: float) -> dict[str, Any]:
        """Those of a run of N = size, D = tokens: the multiple of the recipe's, and the options that set them; none where each size has its own."""
        known = dataclasses.replace(self.situation, points={p.name: p for p in points}, ended=frozenset(r.name for r in self.ledger.records() if r.ended))
        factor = self.planner.lr_factor(known, size, tokens)
        own = any(key.startswith("optimizer") for overrides in self.planner.overrides() for key in overrides)
        return {"factor": factor, "options": {} if own else lr_overrides(self.section.train.optimizer, factor)}

    def frontier(self, points: Sequence[Point], forecast: Mapping[str, Any] | None) -> dict[str, Any]:
        """What the compute-optimal frontier through isoFLOP minima says of the same runs."""
        law = resolve_part("laws", "frontier", self.recipe.registry).build()
        at = (forecast["N"], forecast["D"]) if forecast else None
        return second_opinion(law, points, self.section.parameter_count, self.section.bootstrap, self.section.seed, at)

    def method(self, points: Sequence[Point]) -> dict[str, Any]:
        """What should be reported with a scaling law (Li et al. 2025, 'Misfitting', gives the list)."""
        section = self.section
        return {
            "loss": "nats per token on validation documents, the same for all runs",
            "eval_documents": section.eval_documents or self.validation_documents,
            "N": section.parameter_count,
            "D": "training tokens seen",
            "C": "exact training FLOPs: 3 x forward with full T x T attention and head",
            "sizes": sorted({p.size(section.parameter_count) for p in points}),
            "schedule": section.train.schedule.dump(),
            "optimizer": section.train.optimizer.dump(),
            "seq_len": section.train.seq_len,
            "seed": section.train.seed,
            "law": section.law.dump(),
            "estimator": self.law.estimator(),
            "bootstrap": section.bootstrap,
            "vocab_size": self.vocab_size,
            "train_tokens": self.situation.train_tokens,
        }

    def write_cells(self, records: Iterable[RunRecord]) -> None:
        """runs.jsonl: the ledger for those who read JSON."""
        write_atomic(self.out.path / "runs.jsonl", "".join(json.dumps(finite(_cell_line(record))) + "\n" for record in records))

    def on_ended(self, record: RunRecord) -> None:
        records = {r.name: r for r in self.ledger.records()}
        if record.status == "done":
            self.out.log(f"run {record.name}: loss {record.result['loss']:.4f} nats per token, {record.result['seconds']:.1f} s")
        else:
            self.out.log(f"run {record.name} {record.status}: {record.reason}")
        self.write_cells(records.values())
        self.publish(records, record)

    def publish(self, records: Mapping[str, RunRecord], last: RunRecord | None = None) -> None:
        """Progress of the sweep, in GFLOP of its cells."""
        ended = [r for r in records.values() if r.ended]
        fields: dict[str, Any] = {"finished": f"{len(ended)} of {len(self.cells)} runs"} | ({"run": last.name} if last else {})
        if last is not None and last.status == "done":
            fields["loss"] = round(last.result["loss"], 4)
        self.out.progress(sum(r.flops for r in ended) / 1e9, max(self.total, sum(cell.flops for cell in self.cells)) / 1e9, "GFLOP", "runs", **fields)

    def forward(self, row: dict[str, Any]) -> None:
        """Progress of cells to whoever follows the sweep; their own logs stay in their folders."""
        if row["kind"] == "progress":
            self.out.event("progress", **{k: v for k, v in row.items() if k not in ("kind", "time")})


def cell_run(section: SweepConfig, recipe: Recipe, key: str, cell: Cell, cells: Sequence[Cell]) -> RunSpec:
    """A cell, one of `cells`, as a run of stage pretrain, on the tokens of the sweep, which is stage `key` of the recipe."""
    train = with_overrides(section.train, cell.overrides)
    values = {name: getattr(train, name) for name in type(train).model_fields}
    values["keep_steps"] = sorted({*train.keep_steps, *(other.shared_steps for other in cells if other.original == cell.name)})
    values["original_steps"] = next((other.overrides["max_steps"] for other in cells if other.name == cell.original), 0)
    pretrain = PretrainConfig.model_validate(values | {"score_documents": section.eval_documents, "score_tokens": 0})
    stages = {name: recipe.stages[name] for name in stages_for(recipe, [key]) if name != key}
    stages["pretrain"] = StageEntry("pretrain", recipe.registry.resolve("stages", "feeb/pretrain"), pretrain)  # type: ignore[arg-type]
    name = re.sub(r"[^\w.-]+", "-", f"{recipe.name}-{cell.name}")[:120]  # it becomes a folder's name
    own = dataclasses.replace(recipe, name=name, stages=stages, changes=flat({"pretrain": cell.overrides}))
    return RunSpec(cell.name, own, ("pretrain",), "cell", cell.overrides, cell.flops, cell.budget, heldout=cell.heldout)


def planned_cells(recipe: Recipe, key: str, workspace: Workspace, built: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Rows as of `feeb plan`: the cells of the sweep that is stage `key`. built: finished stages of the recipe."""
    section = recipe.stages[key].section
    assert isinstance(section, SweepConfig)
    needs = recipe.needs(key)
    if not {needs["tokens"], needs["tokenizer"]} <= {*built, *recipe.inputs}:
        number = len(section.planner.build().overrides())
        return [unknown(f"{recipe.name}-run{i + 1}", "pretrain", "the stages before it are not built yet") for i in range(number)]
    tokens = finished_inputs(recipe, key, workspace, built)["tokens"]
    cells = section.planner.build().plan(situation_of(section, tokens.path))
    return rows_of([cell_run(section, recipe, key, cell, cells) for cell in cells], workspace, built)


def situation_of(section: SweepConfig, folder: Path) -> Situation:
    """What a planner knows before anything has run. folder: of the tokens."""
    from feebcore.data.store import TokenStore
    from feebcore.data.views import source_views
    from feebcore.evaluate.scorer import chosen_documents

    tokens = read_json(folder / "tokens.json")
    train, validation = (TokenStore.open(folder / "tokens.zarr", split) for split in ("train", "validation"))
    scored = validation.doc_source[chosen_documents(validation, section.eval_documents or None)]
    codes, counts = np.unique(scored, return_counts=True)
    return Situation(
        measure_with(section.train, tokens["vocab_size"]),
        scale_lr_of(section.train),
        section.parameter_count,
        section.law.build(),
        section.target,
        tokens["train"]["tokens"],
        section.seed,
        source_tokens={name: view.num_tokens for name, view in source_views(train).items()},
        scored_documents={validation.sources[code]: count for code, count in zip(codes.tolist(), counts.tolist(), strict=True)},
        shared_steps=shared_steps_of(section.train, tokens["vocab_size"]),
    )


def expected_point(name: str, overrides: Mapping[str, Any], flops: float, known: Situation) -> Point:
    """A run that has not ended: its loss is NaN."""
    cost = known.measure(overrides)
    counts = cost.counts
    return Point(name, counts.total, counts.non_embedding, counts.matmul, flops / cost.flops_per_token, flops, math.nan, shares=shares_in(overrides))


def _between(entry: Mapping[str, Any]) -> str:
    return f" ({entry['low']:.4f} to {entry['high']:.4f})" if entry.get("low") is not None else ""


def distance(point: Point, size: float, tokens: float, flops: float, parameter_count: Any) -> float:
    """How far a cell is from (N, D, C), in logarithms."""
    return math.dist(
        (math.log(point.size(parameter_count)), math.log(point.tokens), math.log(point.flops)),
        (math.log(size), math.log(tokens), math.log(flops)),
    )


def measurement(metrics: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """What the ledger keeps of a cell, from the metrics of its pretraining. Raises Diverged when its loss is no measurement."""
    loss, chance = metrics["val_loss"], math.log(vocab_size)
    if not math.isfinite(loss) or loss > 1.05 * chance:
        raise Diverged(f"validation loss {loss:.3f} nats per token is worse than a uniform guess ({chance:.3f}); lower the learning rate for this size")
    numbers = {key: metrics[key] for key in ("steps", "tokens", "flops", "final_loss", "parameters", "seconds")}
    numbers |= {"bits_per_byte": metrics["val_bits_per_byte"], "epochs": metrics["data"]["epochs"], "began_at_step": metrics.get("began_at_step", 0)}
    return numbers | {"loss": loss}


def point_of(record: RunRecord) -> Point:
    """A measured cell, from `measurement`."""
    parameters = record.result["parameters"]
    return Point(
        record.name,
        parameters["total"],
        parameters["non_embedding"],
        parameters["matmul"],
        float(record.result["tokens"]),
        float(record.result["flops"]),
        float(record.result["loss"]),
        record.budget,
        record.result["bits_per_byte"],
        record.heldout,
        shares=shares_in(record.overrides),
        source_losses=record.result.get("source_losses", {}),
        source_weights=record.result.get("source_weights", {}),
    )


def _cell_line(record: RunRecord) -> dict[str, Any]:
    numbers = {
        k: record.result[k] for k in ("loss", "bits_per_byte", "seconds", "tokens", "steps", "final_loss", "epochs", "source_losses") if k in record.result
    }
    line: dict[str, Any] = {
        "name": record.name,
        "status": record.status,
        "heldout": record.heldout,
        "overrides": record.overrides,
        "budget": record.budget,
        "flops": record.flops,
        "N": record.result.get("parameters"),
        "D": record.result.get("tokens"),
    }
    return line | numbers | ({"reason": record.reason} if record.reason else {})


def _outcome(entry: dict[str, Any], record: RunRecord) -> dict[str, Any]:
    """A prediction and what was measured; relative errors are absolute values."""
    outcome = {("predicted" if k == "loss" else k): v for k, v in entry.items() if k not in ("written", "begun", "law", "points", "points_digest")}
    if record.status != "done":
        return outcome | {"measured": None, "relative_error": None, "nearest_error": None, "reason": record.reason}
    measured = record.result["loss"]
    outcome |= {"measured": measured, "bits_per_byte": record.result["bits_per_byte"]}
    for key, value in (("relative_error", entry.get("loss")), ("nearest_error", entry.get("nearest_loss"))):
        outcome[key] = None if value is None else abs(value / measured - 1.0)
    return outcome


def _summary(fit: LawFit | None, form: str, parameter_count: str, refusal: str) -> dict[str, Any]:
    """The law in the manifest: parameters at the top, None where there is no fit."""
    if fit is None:
        empty = dict.fromkeys(("E", "A", "B", "alpha", "beta", "a"))
        return {"form": form, **empty, "intervals": {}, "flags": [f"refused: {refusal}"], "parameter_count": parameter_count, "num_points": 0}
    plain = fit.to_dict()
    return {"form": fit.form, **plain["parameters"]} | {k: plain[k] for k in ("intervals", "flags", "parameter_count", "objective", "num_points")}


def _allocation(curves: Sequence[isoflop.Minimum]) -> tuple[dict[str, Any] | None, str]:
    try:
        return dataclasses.asdict(isoflop.allocate(curves)), ""
    except NotIdentifiable as error:
        return None, str(error)


def _curves(law: Law, fit: LawFit, points: Sequence[Point]) -> list[dict[str, Any]]:
    """The fitted loss along each budget, over the sizes of that budget and a little more.

    FLOPs per token between sizes: a straight line in logarithms through all cells' own.
    """
    sizes = np.array([p.size(fit.parameter_count) for p in points], dtype=np.float64)
    slope, level = (
        np.polyfit(np.log(sizes), np.log([p.flops_per_token for p in points]), 1) if len(np.unique(sizes)) > 1 else (0.0, math.log(points[0].flops_per_token))
    )
    curves = []
    for budget in sorted({p.budget for p in points if p.budget > 0}):
        mine = [p.size(fit.parameter_count) for p in points if p.budget == budget]
        size = np.geomspace(min(mine) / 1.5, max(mine) * 1.5, CURVE_POINTS)
        tokens = budget / np.exp(level + slope * np.log(size))
        along = [law.predict(fit, float(n), float(d)) for n, d in zip(size, tokens, strict=True)]
        heldout = all(p.heldout for p in points if p.budget == budget)
        ends = {key: [getattr(p, key) for p in along] for key in ("loss", "low", "high")}
        curves.append({"budget": budget, "heldout": heldout, "size": size.tolist(), "tokens": tokens.tolist(), **ends})
    return curves
