"""Tables of runs: columns, errors that name file and line, conditions on rows, and `feeb sweep fit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from worlds import grid, law

from feeb_pipelines.cli import run_command
from feebcore.errors import DataError, UsageError
from feebcore.scaling.table import parse_where, read_table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """25 runs over five budgets, one held out, and one that is not trained yet."""
    rows = [f"{p.name},{p.non_embedding},{p.tokens},{p.loss},{p.flops},,adam" for p in grid(0.002)]
    rows += [f"big,6e8,1e10,{law(6e8, 1e10)},,1,adam", "next,1e9,2e10,,,yes,lion"]
    path = tmp_path / "runs.csv"
    path.write_text("name,N,D,loss,flops,heldout,optimizer\n" + "\n".join(rows) + "\n")
    return path


def test_a_table_becomes_points(table: Path) -> None:
    read = read_table(table)
    assert len(read.points) == 26
    assert [p.name for p in read.points if p.heldout] == ["big"]
    assert [p.name for p in read.without] == ["next"]
    assert read.notes == ["ignored columns: optimizer"]
    first = grid(0.002)[0]
    assert (read.points[0].name, read.points[0].total, read.points[0].tokens, read.points[0].loss) == (
        first.name,
        first.non_embedding,
        first.tokens,
        first.loss,
    )


def test_rows_of_equal_flops_are_a_curve_where_no_budget_is_given(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("N,D,loss,flops\n1e6,1e9,3,6e15\n2e6,5e8,2.9,6e15\n4e6,2.5e8,3,6e15\n4e6,2e9,2,9e15\n")
    assert [p.budget for p in read_table(tmp_path / "t.csv").points] == [6e15, 6e15, 6e15, 0.0]
    (tmp_path / "t.csv").write_text("N,D,loss,flops,budget\n1e6,1e9,3,6e15,7e15\n")
    assert [p.budget for p in read_table(tmp_path / "t.csv").points] == [7e15]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N,D\n1,2\n", r"line 1: no column loss \(found N, D\)"),
        ("n,D,Loss\n1,2,3\n", "rename 'n' to 'N'; rename 'Loss' to 'loss'"),
        ("N;D;loss\n1;2;3\n", "separated by commas"),
        ("N,D,loss,N\n1,2,3,4\n", "line 1: column 'N' appears more than once"),
        ("", "no column N, D, loss"),
        ("N,D,loss\n", "no row has a loss"),
        ("N,D,loss\n1e6,1e9,3\n1e6,1e9\n", "line 3: 2 fields, and the header has 3"),
        ("N,D,loss\n1e6,1e9,three\n", r"line 2 \(run line 2\): loss is 'three', which is not a number"),
        ("name,N,D,loss\na,1e6,1e9,3\nb,1e6,1e9,nan\n", r"line 3 \(run b\): loss is nan, and must be positive and finite"),
        ("N,D,loss\n1e6,1e9,inf\n", "loss is inf"),
        ("N,D,loss\n1e6,1e9,-1\n", "loss is -1"),
        ("N,D,loss\n1e6,1e9,\n", "loss is '', which is not a number"),
        ("N,D,loss\n0,1e9,3\n", "N is 0, and must be positive"),
        ("N,D,loss\n0.07,1e9,3\n", "N is 0.07; give the number of parameters, not millions"),
        ("N,D,loss\n1e6,0,3\n", "D is 0"),
        ("N,D,loss,flops\n1e6,1e9,3,-4\n", "flops is -4"),
        ("N,D,loss,weight\n1e6,1e9,3,0\n", "weight is 0"),
        ("N,D,loss,heldout\n1e6,1e9,3,maybe\n", "line 2: heldout is 'maybe'; write 1 or 0"),
    ],
)
def test_errors_name_file_line_and_run(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message) as raised:
        read_table(tmp_path / "t.csv")
    assert str(raised.value).startswith(str(tmp_path / "t.csv"))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        read_table(tmp_path)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not text in UTF-8"):
        read_table(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("N > 1e6", True),
        ("N > 1e6 and D < 100", False),
        ("1e5 < N <= 2e6 or D == 3", True),
        ("not (N == 2e6)", False),
        ("optimizer == 'adam' and N != -1", True),
        ("optimizer == 3", False),
        ("optimizer != 3", True),
    ],
)
def test_conditions(where: str, kept: bool) -> None:
    assert parse_where(where)({"N": 2e6, "D": 1e9, "optimizer": "adam"}, "here") is kept


@pytest.mark.parametrize(
    "where", ["", "N", "N > ", "__import__('os')", "N.real > 1", "N + 1 > 2", "(N := 3) > 1", "[1] == N", "True", "N is 1", "f'{N}' == N", "lambda: 1"]
)
def test_a_condition_holds_comparisons_only(where: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        parse_where(where)


def test_conditions_on_unknown_columns_and_mixed_types() -> None:
    with pytest.raises(UsageError, match="no column 'M'"):
        parse_where("M > 1")({"N": 1.0}, "here")
    with pytest.raises(DataError, match=r"line 3: --where .* compares 'adam' with 1"):
        parse_where("optimizer > 1")({"optimizer": "adam"}, "t.csv, line 3")


def test_a_law_is_fitted_to_a_table(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["sweep", "fit", "--csv", str(table), "--target", "1e20", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["fit"]["form"] == "posterior"
    assert document["fit"]["num_points"] == 25
    assert document["isoflop"]["allocation"]["num_minima"] == 5
    big, later = document["heldout"]
    assert big["inside"]
    assert abs(big["error"]) < 0.01
    assert (later["name"], later["measured"], later["error"]) == ("next", None, None)
    (target,) = document["targets"]
    assert target["low"] < law(target["N"], target["D"]) < target["high"]
    assert document["notes"] == ["ignored columns: optimizer"]
    assert run_command(["sweep", "fit", "--csv", str(table), "--target", "1e22", "--where", "optimizer == 'adam'"]) == 0
    out = capsys.readouterr().out
    assert "mean absolute error" in out
    assert "caveat: extrapolates" in out
    assert "note: 1 row left out by --where" in out


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "name a finished sweep, or a table with --csv FILE"),
        (["--csv", "TABLE", "--target", "-1"], 2, "--target -1: must be above 0"),
        (["--csv", "TABLE", "--law", "frontir"], 2, "did you mean 'frontier'"),
        (["--csv", "TABLE", "--law", '{"name": "frontier", "method": "spline"}'], 2, "'parabola' or 'akima'"),
        (["--csv", "TABLE", "--law", "{"], 2, "--law {"),
        (["--csv", "TABLE", "--draws", "20"], 2, "--draws 20: at least 100"),
        (["--csv", "TABLE", "--where", "N < 1"], 1, "no row is left by --where"),
        (["--csv", "TABLE", "--where", "M < 1"], 2, "no column 'M'"),
        (["x", "--csv", "TABLE"], 2, "not both"),
    ],
)
def test_wrong_arguments_get_one_sentence(table: Path, arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["sweep", "fit", *(str(table) if a == "TABLE" else a for a in arguments)]) == status
    error = capsys.readouterr().err
    assert error.startswith("feeb: ")
    assert message in error
    assert "Traceback" not in error
