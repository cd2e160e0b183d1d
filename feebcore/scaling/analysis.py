"""A law through given points: its fit, second opinions, what it says of held-out runs and of targets. Nothing is trained or written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feebcore.errors import DataError
from feebcore.files import read_json
from feebcore.scaling import isoflop
from feebcore.scaling.checks import methods_differ, require_measured
from feebcore.scaling.points import PARAMETER_COUNTS, Law, LawFit, NotIdentifiable, Optimum, ParameterCount, Point
from feebcore.scaling.rollouts import error_per_reach


def points_of_sweep(folder: Path) -> tuple[list[Point], ParameterCount]:
    """The points of a finished sweep, and the parameter count of its law. Raises DataError where there is no law.json."""
    path = folder / "law.json"
    if not path.is_file():
        raise DataError(f"{folder} has no law.json: it is not a sweep, or not finished")
    document = read_json(path)
    names = {field.name for field in dataclasses.fields(Point)}
    return [Point(**{k: v for k, v in row.items() if k in names}) for row in document["points"]], document["law"]["parameter_count"]


def analyze(
    law: Law, points: Sequence[Point], unmeasured: Sequence[Point], parameter_count: ParameterCount, draws: int, seed: int, targets: Sequence[float]
) -> dict[str, Any]:
    """Plain JSON: fit, flags, isoflop, rollouts, heldout and targets. Held-out points are predicted, not fitted; `unmeasured` have no loss.

    Raises NotIdentifiable where there is no law.
    """
    require_measured(points, parameter_count)
    fitted = [p for p in points if not p.heldout]
    fit = law.fit(fitted, parameter_count, draws, seed)
    flags = list(fit.flags)
    curves = isoflop.minima(fitted, parameter_count)
    allocation, problem = None, "no isoFLOP curves: no runs share a budget"
    if curves:
        try:
            allocation, problem = isoflop.allocate(curves), ""
        except NotIdentifiable as error:
            problem = str(error)
    if allocation is not None and "a" in fit.parameters:
        flags += methods_differ(fit.parameters["a"], allocation.exponent)
    slope = error_per_reach(fit)
    outcomes = [outcome(law, fit, p) for p in [*points, *unmeasured] if p.heldout]
    return {
        "fit": fit.to_dict() | {"flags": flags},
        "isoflop": {"minima": [m.to_dict() for m in curves], "allocation": dataclasses.asdict(allocation) if allocation else None, "problem": problem},
        "rollouts": {"error_per_reach": None if math.isnan(slope) else slope, "runs": [dataclasses.asdict(r) for r in fit.rollouts]},
        "heldout": outcomes,
        "targets": [_target(law.optimum(fit, flops)) for flops in targets],
    }


def outcome(law: Law, fit: LawFit, point: Point) -> dict[str, Any]:
    """What the law says of a run that it was not fitted to, and how far off it is; measured is None where that is not known."""
    prediction = law.predict_point(fit, point)
    row: dict[str, Any] = {"name": point.name, "N": point.size(fit.parameter_count), "D": point.tokens, "predicted": prediction.loss}
    row |= {"low": _finite(prediction.low), "high": _finite(prediction.high), "flags": list(prediction.flags), "measured": None, "error": None, "inside": None}
    if math.isnan(point.loss):
        return row
    inside = prediction.low <= point.loss <= prediction.high if row["low"] is not None else None
    return row | {"measured": point.loss, "error": prediction.loss / point.loss - 1.0, "inside": inside}


def residual_rows(law: Law, fit: LawFit, points: Sequence[Point]) -> list[dict[str, Any]]:
    """Of each fitted run: N, D, flops, budget, loss, residual ln(predicted / measured), weight, off_ridge ln(N / N*), and whether it is an outlier; none by a law
    whose residuals are not of runs, as those of isoFLOP minima."""
    rows: list[dict[str, Any]] = []
    if len(fit.residuals) != len(points):
        return rows
    weights = fit.weights or (1.0,) * len(points)
    for point, residual, weight in zip(points, fit.residuals, weights, strict=True):
        row = {"name": point.name, "N": point.size(fit.parameter_count), "D": point.tokens, "flops": point.flops, "budget": point.budget, "loss": point.loss}
        rows.append(row | {"residual": residual, "weight": weight, "off_ridge": _off_ridge(law, fit, point), "outlier": point.name in fit.outliers})
    return rows


def _off_ridge(law: Law, fit: LawFit, point: Point) -> float | None:
    """ln(N / N*); None by a law that has no best size, as one without an A or a B."""
    try:
        return _finite(math.log(point.size(fit.parameter_count) / law.optimum(fit, point.flops_6nd(fit.parameter_count)).size))
    except (ArithmeticError, ValueError):
        return None


def by_parameter_count(law: Law, points: Sequence[Point], bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """The law through the same runs with N counted in each way: sizes, exponent a of compute with its interval, alpha, beta, and the
    isoFLOP exponent; `problem` says why a count gives no law."""
    rows = []
    for count in PARAMETER_COUNTS:
        sizes = [p.size(count) for p in points]
        row: dict[str, Any] = {"parameter_count": count, "N": [min(sizes, default=0), max(sizes, default=0)], "parameters": {}, "interval": None, "problem": ""}
        try:
            fit = law.fit(points, count, bootstrap, seed)
            row |= {"parameters": dict(fit.parameters), "interval": list(fit.intervals["a"]) if "a" in fit.intervals else None}
        except NotIdentifiable as error:
            row["problem"] = str(error)
        try:
            row["isoflop"] = dataclasses.asdict(isoflop.allocate(isoflop.minima(points, count)))
        except NotIdentifiable:
            row["isoflop"] = None
        rows.append(row)
    return rows


def second_opinion(law: Law, points: Sequence[Point], parameter_count: ParameterCount, draws: int, seed: int, at: tuple[float, float] | None) -> dict[str, Any]:
    """Another law through the same runs: parameters, intervals, flags, and what it says of N, D = `at`; `problem` where there is none."""
    try:
        fit = law.fit(points, parameter_count, draws, seed)
    except NotIdentifiable as error:
        return {"parameters": {}, "intervals": {}, "flags": [], "prediction": None, "problem": str(error)}
    plain = {key: fit.to_dict()[key] for key in ("parameters", "intervals", "flags")}
    return plain | {"prediction": dataclasses.asdict(law.predict(fit, *at)) if at else None, "problem": ""}


def _target(best: Optimum) -> dict[str, Any]:
    row = {"flops": best.flops, "N": best.size, "N_low": _finite(best.size_low), "N_high": _finite(best.size_high), "D": best.tokens}
    prediction = best.prediction
    return row | {"loss": prediction.loss, "low": _finite(prediction.low), "high": _finite(prediction.high), "flags": list(prediction.flags)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
