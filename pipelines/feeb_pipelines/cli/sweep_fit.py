"""`feeb sweep fit`: a law through the runs of a table or of a finished sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Plugin, WorkspaceOption
from feeb_pipelines.cli.tables import print_json, print_table

if TYPE_CHECKING:
    from feebcore.scaling.points import Law


def fit(
    sweep: Annotated[str | None, Parameter(help="A finished sweep: NAME, sweep/NAME, the start of its fingerprint, or its folder.", show_default=False)] = None,
    /,
    *,
    csv: Annotated[
        Path | None,
        Parameter(
            help="Table of runs instead: columns N (parameters), D (tokens), loss; optional name, flops, budget, heldout, weight, seed, group, unique_tokens.",
            show_default=False,
        ),
    ] = None,
    law: Annotated[str, Parameter(help='Law to fit: a name that `feeb parts laws` lists, or JSON with options: \'{"name": "frontier", …}\'.')] = "posterior",
    target: Annotated[
        list[float],
        Parameter(help="Training FLOPs (6ND) to allocate, with the loss there. May be repeated.", negative=(), show_default=False),
    ] = [],  # noqa: B006
    where: Annotated[str, Parameter(help="Use only rows of --csv for which this holds, e.g. 'N > 1e6 and optimizer == \"adam\"'.", show_default=False)] = "",
    draws: Annotated[int, Parameter(help="Posterior draws or bootstrap resamples for 95% intervals, at least 100; 0: none.")] = 500,
    seed: Annotated[int, Parameter(help="Random seed of the draws.")] = 0,
    plugin: Plugin = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Fit a scaling law to runs that are finished: your own table, or a sweep. Trains nothing, and writes nothing.

    Prints parameters with 95% intervals, the exponent by isoFLOP minima as a second opinion, what the law says of held-out rows
    against what was measured, the best size and the loss for each --target, and caveats. Repeated N and D (several seeds) count as one run.

    Examples:
        feeb sweep fit --csv runs.csv --target 1e21
        feeb sweep fit --csv runs.csv --law frontier --where 'budget >= 1e18'
        feeb sweep fit sweep-small --law chinchilla --json
    """
    from feebcore.errors import UsageError
    from feebcore.scaling.analysis import analyze, points_of_sweep
    from feebcore.scaling.points import LEAST_DRAWS, ParameterCount
    from feebcore.scaling.table import read_table

    if (sweep is None) == (csv is None):
        raise UsageError("name a finished sweep, or a table with --csv FILE" + ("" if sweep is None else ", not both"))
    for flops in target:
        if not 0 < flops < float("inf"):
            raise UsageError(f"--target {flops:g}: must be above 0 and finite")
    if draws != 0 and draws < LEAST_DRAWS:
        raise UsageError(f"--draws {draws}: at least {LEAST_DRAWS} for an interval, or 0 for none")
    part = _law(law, plugin)
    parameter_count: ParameterCount = "total"
    if csv is not None:
        table = read_table(csv, where)
        points, unmeasured, notes = table.points, table.without, table.notes
    else:
        if where:
            raise UsageError("--where chooses rows of --csv; a sweep is fitted whole")
        assert sweep is not None
        (points, parameter_count), unmeasured, notes = points_of_sweep(_folder(sweep, workspace)), [], []
    document = analyze(part, points, unmeasured, parameter_count, draws, seed, target) | {"notes": notes}
    if json:
        print_json(document)
    else:
        _show(document)


def _law(text: str, plugin: Sequence[str]) -> Law:
    """The law part that `text` names. Raises UsageError."""
    import json as json_module

    from pydantic import ValidationError

    from feeb_pipelines.cli.parts import plugin_files
    from feebcore.errors import FeebError, UsageError
    from feebcore.parts import resolve_part
    from feebcore.registry import get_registry

    try:
        value = json_module.loads(text) if text.lstrip().startswith("{") else text
        built: Law = resolve_part("laws", value, get_registry(plugin_files(plugin))).build()
    except ValidationError as error:
        raise UsageError(f"--law {text}: " + "; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors(include_url=False))) from None
    except (ValueError, FeebError) as error:
        raise UsageError(f"--law {text}: {error}") from None
    return built


def _folder(sweep: str, workspace: Path | None) -> Path:
    from feebcore.api import open_run

    return open_run(sweep if "/" in sweep else f"sweep/{sweep}", workspace).path


def _show(document: Mapping[str, Any]) -> None:
    law = document["fit"]
    print(f"law {law['form']} through {law['num_points']} runs; loss in nats per token, C = 6ND")
    print_table(("parameter", "value", "95% interval"), [(k, _number(v), _ends(*law["intervals"].get(k, (None, None)))) for k, v in law["parameters"].items()])
    if allocation := document["isoflop"]["allocation"]:
        print(
            f"\nisoFLOP minima: N_opt grows as C^{allocation['exponent']:.3f} ({_ends(allocation['low'], allocation['high'])}), {allocation['num_minima']} budgets"
        )
    if (error := document["rollouts"]["error_per_reach"]) is not None:
        print(f"rollouts: the dearest runs, predicted from the cheaper ones, were off by {100 * error:.2f}% per factor e of FLOPs")
    if document["heldout"]:
        print()
        rows = [
            (h["name"], _number(h["predicted"]), _ends(h["low"], h["high"]), _number(h["measured"]), "" if h["error"] is None else f"{100 * h['error']:+.2f}%")
            for h in document["heldout"]
        ]
        print_table(("held-out run", "predicted", "95% interval", "measured", "error"), rows)
        measured = [h for h in document["heldout"] if h["error"] is not None]
        if measured:
            within = "" if measured[0]["inside"] is None else f"; {sum(h['inside'] for h in measured)} of {len(measured)} inside their intervals"
            print(f"mean absolute error {100 * sum(abs(h['error']) for h in measured) / len(measured):.2f}%{within}")
    if document["targets"]:
        print()
        best = [
            (f"{t['flops']:.3g}", f"{t['N']:.4g}", _ends(t["N_low"], t["N_high"]), f"{t['D']:.4g}", _number(t["loss"]), _ends(t["low"], t["high"]))
            for t in document["targets"]
        ]
        print_table(("target FLOPs", "best N", "95% interval of N", "D", "loss", "95% interval"), best, drop=("95% interval of N",))
    flags = [*law["flags"], *(flag for row in (*document["targets"], *document["heldout"]) for flag in row["flags"])]
    for line in [*(f"caveat: {flag}" for flag in dict.fromkeys(flags)), *(f"note: {note}" for note in document["notes"])]:
        print(line)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if 0.01 <= abs(value) < 1000 else f"{value:.4g}"


def _ends(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


fit.usage = "Usage: feeb sweep fit [SWEEP] [--csv FILE] [OPTIONS]"  # type: ignore[attr-defined]
