"""The sweep itself: plan, train every cell in this process, fit, predict the held-out cells, run them, report."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import shutil
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from feebcore.artifacts import Artifact, StageOutput
from feebcore.data.loader import make_batches
from feebcore.data.store import TokenStore
from feebcore.errors import NO_VALIDATION_TEXT, DataError, Diverged, Interrupted
from feebcore.evaluate.scorer import score_store
from feebcore.files import read_json, write_atomic, write_json
from feebcore.scaling import isoflop
from feebcore.scaling.cells import measure_with, with_overrides
from feebcore.scaling.points import Law, LawFit, NotIdentifiable, Point
from feebcore.studies import Ledger, Row, this_owner
from feebcore.train.pretrain import train_model

if TYPE_CHECKING:
    from feebcore.scaling.config import SweepConfig
    from feebcore.train.config import TrainSection

CURVE_POINTS = 60


class Sweep:
    """One sweep in one folder. Use as a context manager: it holds the ledger."""

    def __init__(self, section: SweepConfig, tokens: Artifact, tokenizer: Artifact, out: StageOutput) -> None:
        self.section, self.out = section, out
        self.tokenizer = tokenizer.file("tokenizer")
        self.train_store = TokenStore.open(tokens.file("tokens.zarr"), "train")
        self.val_store = TokenStore.open(tokens.file("tokens.zarr"), "validation")
        self.inputs = {"tokens": tokens.digest, "tokenizer": tokenizer.digest}
        self.law: Law = section.law.build()
        self.ledger = Ledger(out.path / "ledger.sqlite")

    def __enter__(self) -> Sweep:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    def run(self) -> dict[str, Any]:
        """Everything; returns the metrics of the stage. Raises DataError when there is no held-out text to measure cells on."""
        if not self.val_store.num_documents:
            raise DataError(f"sweep: no document is held out, so no cell can be measured; {NO_VALIDATION_TEXT}")
        cells = self.section.planner.build().plan(measure_with(self.section.train, self.train_store.vocab_size))
        self.ledger.plan(cells, self.inputs)
        self.ledger.expire(everyone=True)  # we hold the artifact's lock, so whoever leased before us is gone
        self.train_cells(heldout=False)
        points = [p for p in self.points() if not p.heldout]
        fit, refusal = self.fit(points)
        predictions = self.predict(fit, points)
        self.train_cells(heldout=True)
        self.write_cells()  # once more: a kill may have come between the ledger's last entry and this file
        return self.report(fit, refusal, predictions)

    def train_cells(self, heldout: bool) -> None:
        """Train every unfinished cell of this role, in order."""
        self.tell()
        while (row := self.ledger.lease(this_owner(), seconds=7 * 86400.0, heldout=heldout)) is not None:
            try:
                result = self.train_cell(row)
                self.ledger.done(row.name, result, owner=this_owner())
                self.out.log(f"cell {row.name}: loss {result['loss']:.4f} nats per token, {result['seconds']:.1f} s")
            except Diverged as error:
                self.ledger.censor(row.name, str(error), owner=this_owner())
                self.out.log(f"cell {row.name} is censored: {error}")
            except BaseException:
                self.ledger.release(row.name, this_owner())
                raise
            self.write_cells()
            self.tell(row.name)

    def train_cell(self, row: Row) -> dict[str, Any]:
        """Train one cell and score it. Raises Diverged when its loss is no measurement."""
        if self.out.stop_requested:
            raise Interrupted("stopped between two cells; run the same command again to continue")
        started = time.perf_counter()
        section = with_overrides(self.section.train, row.overrides)
        folder = self.out.path / "cells" / row.name
        keep = self.section.keep
        resumes = section.checkpoint_every > 0 or keep == "checkpoints"
        if not resumes:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        data = make_batches(self.train_store, section.packing, section.data_order, section.batch_size, section.seq_len, section.seed, section.max_steps)
        trained = train_model(
            section,
            data,
            self.val_store if section.eval_every else None,
            self.tokenizer,
            folder,
            self.out,
            vocab_size=self.train_store.vocab_size,
            checkpoint=resumes,
            save=keep != "none",
            final_score=False,
            name=row.name,
        )
        result = trained.metrics | self.score(trained.model, section, trained.metrics["precision"])
        epochs = section.max_steps / data.steps_per_epoch
        del trained, data
        gc.collect()
        if keep != "checkpoints":
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return result | {"epochs": epochs, "seconds": round(time.perf_counter() - started, 3)}

    def score(self, model: Any, section: TrainSection, precision: str) -> dict[str, float]:
        """Loss and bits per byte on the held-out documents that all cells share."""
        stride = section.eval_stride or max(1, section.seq_len // 2)
        score = score_store(model, self.val_store, section.seq_len, stride, dtype=precision, max_documents=self.section.eval_documents or None)
        chance = math.log(self.train_store.vocab_size)
        if not math.isfinite(score.loss) or score.loss > 1.05 * chance:
            raise Diverged(f"held-out loss {score.loss:.3f} nats per token is worse than guessing ({chance:.3f}); lower the rate for this size")
        return {"loss": score.loss, "bits_per_byte": score.bits_per_byte, "eval_tokens": score.tokens}

    def points(self) -> list[Point]:
        """The cells that were measured."""
        return [_point(row) for row in self.ledger.rows() if row.status == "done"]

    def fit(self, points: Sequence[Point]) -> tuple[LawFit | None, str]:
        """The law over the cells that are not held out, or why there is none."""
        try:
            return self.law.fit(points, self.section.parameter_count, self.section.bootstrap, self.section.seed), ""
        except NotIdentifiable as error:
            self.out.log(f"no law: {error}")
            return None, str(error)

    def predict(self, fit: LawFit | None, points: Sequence[Point]) -> list[dict[str, Any]]:
        """What each held-out cell will reach, written down with the time before it is run; an earlier one is kept."""
        path = self.out.path / "prediction.json"
        if path.exists():
            return read_json(path)["cells"]
        predictions: list[dict[str, Any]] = []
        measure = measure_with(self.section.train, self.train_store.vocab_size)
        for row in self.ledger.rows():
            if not row.heldout:
                continue
            cost = measure(row.overrides)
            tokens = row.flops / cost.flops_per_token
            size = getattr(cost.counts, self.section.parameter_count)
            entry: dict[str, Any] = {"name": row.name, "N": size, "D": tokens, "flops": row.flops}
            if points:
                near = min(points, key=lambda p: distance(p, size, tokens, row.flops, self.section.parameter_count))
                entry |= {"nearest": near.name, "nearest_loss": near.loss}
            if fit is not None:
                entry |= dataclasses.asdict(self.law.predict(fit, size, tokens))
            predictions.append(entry)
        begun = [row.name for row in self.ledger.rows() if row.heldout and row.status not in ("planned",)]
        plain = _finite({"written": time.time(), "already_run": begun, "law": fit.to_dict() if fit else None, "cells": predictions})
        write_json(path, plain)
        for entry in predictions:
            if "loss" in entry:
                self.out.log(f"predicted for {entry['name']}: {entry['loss']:.4f} nats per token ({entry['low']:.4f} to {entry['high']:.4f})")
        return plain["cells"]

    def report(self, fit: LawFit | None, refusal: str, predictions: list[dict[str, Any]]) -> dict[str, Any]:
        """law.json and the metrics of the manifest."""
        rows = self.ledger.rows()
        points = self.points()
        heldout = [_outcome(entry, {r.name: r for r in rows}[entry["name"]]) for entry in predictions]
        curves = isoflop.minima([p for p in points if not p.heldout], self.section.parameter_count)
        law = _summary(fit, self.section.law.name, self.section.parameter_count, refusal)
        law["flags"] += self.doubts(rows, curves)
        allocation, problem = _allocation(curves)
        censored = [{"name": r.name, "why": r.why} for r in rows if r.status == "censored"]
        document = {
            "law": law,
            "fit": fit.to_dict() if fit else None,
            "points": [p.to_dict() for p in points],
            "censored": censored,
            "heldout": heldout,
            "isoflop": {"minima": [m.to_dict() for m in curves], "allocation": allocation, "problem": problem},
            "curves": _curves(self.law, fit, points) if fit else [],
            "method": self.method(points),
        }
        write_json(self.out.path / "law.json", _finite(document))
        errors = [h["relative_error"] for h in heldout if h.get("relative_error") is not None]
        guesses = [h["nearest_error"] for h in heldout if h.get("nearest_error") is not None]
        metrics = {
            "law": law,
            "heldout_relative_error": float(np.mean(errors)) if errors else None,
            "nearest_cell_error": float(np.mean(guesses)) if guesses else None,
            "heldout": heldout,
            "cells": len(rows),
            "censored": len(censored),
            "flops": float(sum(p.flops for p in points)),
            "seconds": round(sum(r.result.get("seconds", 0.0) for r in rows), 1),
            "isoflop_minima": [m.to_dict() for m in curves],
        }
        return _finite(metrics)

    def doubts(self, rows: Sequence[Row], curves: Sequence[isoflop.Minimum]) -> list[str]:
        """Flags that the law itself cannot know."""
        flags = []
        if censored := [r.name for r in rows if r.status == "censored"]:
            flags.append(f"censored_cells: {len(censored)} cells diverged and are not in the fit ({', '.join(censored)})")
        if edges := [m for m in curves if m.problem]:
            flags.append(f"isoflop_edges: {len(edges)} of {len(curves)} budgets have no interior minimum")
        epochs = max((r.result.get("epochs", 0.0) for r in rows), default=0.0)
        if epochs > 1.0:
            flags.append(f"repeated_data: a cell went through the corpus {epochs:.1f} times; the law is for fresh data")
        return flags

    def method(self, points: Sequence[Point]) -> dict[str, Any]:
        """What a reader of a scaling law must be told (Li et al. 2025, 'Misfitting', gives the list)."""
        section = self.section
        return {
            "loss": "nats per token on held-out documents, the same for all cells",
            "eval_documents": section.eval_documents or self.val_store.num_documents,
            "N": section.parameter_count,
            "D": "training tokens seen",
            "C": "exact training FLOPs: 3 x forward with full T x T attention and head",
            "sizes": sorted({p.size(section.parameter_count) for p in points}),
            "schedule": section.train.schedule.dump(),
            "optimizer": section.train.optimizer.dump(),
            "seq_len": section.train.seq_len,
            "seed": section.train.seed,
            "law": section.law.dump(),
            "bootstrap": section.bootstrap,
        }

    def write_cells(self) -> None:
        """cells.jsonl: the ledger for those who read JSON."""
        lines = [json.dumps(_finite(_cell_line(row))) for row in self.ledger.rows()]
        write_atomic(self.out.path / "cells.jsonl", "\n".join(lines) + "\n")

    def tell(self, name: str = "") -> None:
        rows = self.ledger.rows()
        ended = [r for r in rows if r.status in ("done", "failed", "censored")]
        fields = {"cells": len(ended), "of": len(rows)} | ({"cell": name} if name else {})
        if ended and ended[-1].status == "done":
            fields["loss"] = round(ended[-1].result["loss"], 4)
        total = sum(r.flops for r in rows) / 1e9
        self.out.progress(sum(r.flops for r in ended) / 1e9, total, "GFLOP", "cells", **fields)


def distance(point: Point, size: float, tokens: float, flops: float, parameter_count: Any) -> float:
    """How far a cell is from (N, D, C), in logarithms."""
    return math.dist(
        (math.log(point.size(parameter_count)), math.log(point.tokens), math.log(point.flops)),
        (math.log(size), math.log(tokens), math.log(flops)),
    )


def _point(row: Row) -> Point:
    parameters = row.result["parameters"]
    return Point(
        row.name,
        parameters["total"],
        parameters["non_embedding"],
        parameters["matmul"],
        float(row.result["tokens"]),
        float(row.result["flops"]),
        float(row.result["loss"]),
        row.budget,
        row.result["bits_per_byte"],
        row.heldout,
    )


def _cell_line(row: Row) -> dict[str, Any]:
    kept = {k: row.result[k] for k in ("loss", "bits_per_byte", "seconds", "tokens", "steps", "final_loss", "epochs") if k in row.result}
    line: dict[str, Any] = {
        "name": row.name,
        "status": row.status,
        "heldout": row.heldout,
        "overrides": row.overrides,
        "budget": row.budget,
        "flops": row.flops,
        "N": row.result.get("parameters"),
        "D": row.result.get("tokens"),
    }
    return line | kept | ({"why": row.why} if row.why else {})


def _outcome(entry: dict[str, Any], row: Row) -> dict[str, Any]:
    """A prediction beside what was measured; relative errors are absolute values."""
    outcome = {("predicted" if k == "loss" else k): v for k, v in entry.items()}
    if row.status != "done":
        return outcome | {"measured": None, "relative_error": None, "nearest_error": None, "why": row.why}
    measured = row.result["loss"]
    outcome |= {"measured": measured, "bits_per_byte": row.result["bits_per_byte"]}
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


def _finite(value: Any) -> Any:
    """JSON has no NaN: None in its place."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
