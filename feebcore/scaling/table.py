"""Runs in a CSV file as points, and a small language that chooses rows: `--where 'N > 1e6 and optimizer == "adam"'`."""

from __future__ import annotations

import ast
import csv
import dataclasses
import io
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feebcore.errors import DataError, UsageError, did_you_mean, plural
from feebcore.scaling.points import Point

REQUIRED = ("N", "D", "loss")
OPTIONAL = ("name", "flops", "budget", "heldout", "weight", "seed", "group", "unique_tokens")
LEAST_CURVE = 3  # rows of equal FLOPs that are an isoFLOP curve where there is no column budget

Value = float | str
Row = Mapping[str, Value]
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Table:
    """points: in the order of the file; without: held-out points that have no loss yet (their loss is NaN); notes: what was left out."""

    points: list[Point]
    without: list[Point]
    notes: list[str]


def read_table(path: Path, where: str = "") -> Table:
    """The points of a CSV file with a header: columns N, D, loss, and any of OPTIONAL; N is taken as every parameter count.

    where: keep the rows for which this is true. Raises DataError, naming file and line, for what is no measurement, and UsageError for a bad `where`.
    """
    keep = parse_where(where) if where else None
    if not path.is_file():
        raise DataError(f"{path} is not a file; give a table in CSV with columns N, D and loss")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text in UTF-8; save the table as CSV") from None
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [column.strip() for column in next(reader, [])]
    _require_columns(path, header)
    points: list[Point] = []
    without: list[Point] = []
    left_out = 0
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise DataError(f"{path}, line {reader.line_num}: {plural(len(fields), 'field')}, and the header has {len(header)}")
            row = {column: field.strip() for column, field in zip(header, fields, strict=True)}
            place = f"{path}, line {reader.line_num}"
            if keep is not None and not keep({column: _value(field) for column, field in row.items()}, place):
                left_out += 1
                continue
            point = _point(row, place, reader.line_num)
            (without if math.isnan(point.loss) else points).append(point)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from None
    if not points:
        raise DataError(f"{path}: no row {'is left by --where ' + repr(where) if left_out else 'has a loss'}")
    notes = [f"{plural(left_out, 'row')} left out by --where"] if left_out else []
    if ignored := [column for column in header if column not in REQUIRED + OPTIONAL]:
        notes.append(f"ignored columns: {', '.join(ignored)}")
    return Table(_with_budgets(points) if "budget" not in header else points, without, notes)


def _require_columns(path: Path, header: list[str]) -> None:
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{path}, line 1: column {twice[0]!r} appears more than once")
    missing = [column for column in REQUIRED if column not in header]
    if not missing:
        return
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise DataError(f"{path}, line 1: the columns must be separated by commas")
    close = {column: [h for h in header if h.lower() == column.lower()] for column in missing}
    renamed = "".join(f"; rename {found[0]!r} to {column!r}" for column, found in close.items() if found)
    raise DataError(f"{path}, line 1: no column {', '.join(missing)} (found {', '.join(header) or 'nothing'}); the columns are N, D and loss{renamed}")


def _point(row: Mapping[str, str], place: str, line: int) -> Point:
    name = row.get("name") or f"line {line}"
    heldout = _flag(row.get("heldout", ""), place)

    def number(column: str, default: float | None = None) -> float:
        field = row.get(column, "")
        if not field and default is not None:
            return default
        try:
            value = float(field)
        except ValueError:
            raise DataError(f"{place} (run {name}): {column} is {field!r}, which is not a number") from None
        if not (math.isfinite(value) and value > 0):
            raise DataError(f"{place} (run {name}): {column} is {value:g}, and must be positive and finite; correct the row, or leave it out with --where")
        return value

    size = number("N")
    if size < 1:
        raise DataError(f"{place} (run {name}): N is {size:g}; give the number of parameters, not millions or billions of them")
    loss = math.nan if heldout and not row["loss"] else number("loss")
    unique = number("unique_tokens") if row.get("unique_tokens") else None
    return Point(
        name,
        *(round(size),) * 3,
        tokens=number("D"),
        flops=number("flops", 0.0),
        loss=loss,
        budget=number("budget", 0.0),
        heldout=heldout,
        weight=number("weight", 1.0),
        group=row.get("group", ""),
        unique_tokens=unique,
    )


def _flag(field: str, place: str) -> bool:
    if field.lower() in ("", "0", "false", "no", "0.0"):
        return False
    if field.lower() in ("1", "true", "yes", "1.0"):
        return True
    raise DataError(f"{place}: heldout is {field!r}; write 1 or 0")


def _with_budgets(points: list[Point]) -> list[Point]:
    """Without a column of budgets, rows of exactly equal FLOPs are an isoFLOP curve."""
    counts = Counter(p.flops for p in points if p.flops > 0)
    return [dataclasses.replace(p, budget=p.flops) if counts[p.flops] >= LEAST_CURVE else p for p in points]


def _value(field: str) -> Value:
    try:
        return float(field)
    except ValueError:
        return field


def parse_where(text: str) -> Callable[[Row, str], bool]:
    """A condition on rows: names of columns, numbers and 'texts', compared by < <= > >= == !=, joined by and, or, not and brackets.

    Returned: a function of a row and the place to name in errors. Raises UsageError for anything else; nothing is executed.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"--where {text!r} is not a condition; write one as in --where 'N > 1e6 and D < 1e9'") from None
    _check(tree, text, condition=True)

    def keep(row: Row, place: str) -> bool:
        return bool(_evaluate(tree, row, text, place))

    return keep


def _check(node: ast.expr, text: str, condition: bool) -> None:
    match node:
        case ast.BoolOp(values=values) if condition:
            for value in values:
                _check(value, text, condition=True)
        case ast.UnaryOp(op=ast.Not(), operand=operand) if condition:
            _check(operand, text, condition=True)
        case ast.Compare(left=left, ops=ops, comparators=others) if condition and all(type(op) in COMPARISONS for op in ops):
            for value in (left, *others):
                _check(value, text, condition=False)
        case ast.Name() if not condition:
            pass
        case ast.Constant(value=value) if not condition and isinstance(value, int | float | str) and not isinstance(value, bool):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)) if not condition and isinstance(value, int | float):
            pass
        case _:
            raise UsageError(
                f"--where {text!r}: {ast.unparse(node)!r} is not allowed; compare columns, numbers and 'texts' by < <= > >= == !=, and join by and, or, not"
            )


def _evaluate(node: ast.expr, row: Row, text: str, place: str) -> Value | bool:
    match node:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_evaluate(value, row, text, place) for value in values)
        case ast.BoolOp(values=values):
            return any(_evaluate(value, row, text, place) for value in values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _evaluate(operand, row, text, place)
        case ast.Compare(left=left, ops=ops, comparators=others):
            sides = [_evaluate(value, row, text, place) for value in (left, *others)]
            return all(_compare(op, a, b, text, place) for op, a, b in zip(ops, sides[:-1], sides[1:], strict=True))
        case ast.Name(id=name):
            if name not in row:
                raise UsageError(f"--where {text!r}: no column {name!r}; {did_you_mean(name, row)}")
            return row[name]
        case ast.UnaryOp(operand=ast.Constant(value=value)):
            return -float(value)  # type: ignore[arg-type]
        case ast.Constant(value=value):
            return value if isinstance(value, str) else float(value)  # type: ignore[arg-type]
    raise AssertionError(ast.dump(node))


def _compare(op: ast.cmpop, left: Any, right: Any, text: str, place: str) -> bool:
    if isinstance(left, str) != isinstance(right, str):
        if isinstance(op, ast.Eq | ast.NotEq):
            return isinstance(op, ast.NotEq)
        raise DataError(f"{place}: --where {text!r} compares {left!r} with {right!r}, a text with a number")
    return COMPARISONS[type(op)](left, right)
