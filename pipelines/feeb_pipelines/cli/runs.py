"""`feeb runs`, `show`, `diff`: read what was run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Set, WorkspaceOption, is_recipe
from feeb_pipelines.cli.tables import hint, print_json, print_table

if TYPE_CHECKING:
    from feebcore.api import Run

RUN = "STAGE/NAME, NAME, the start of a fingerprint, or a folder"


def runs(
    stage: Annotated[str | None, Parameter(help="Show only this stage.")] = None,
    /,
    *,
    last: Annotated[int | None, Parameter(name=["--last", "-n"], help="Show only the newest N.")] = None,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """List the artifacts of the workspace, newest first: status, what each recipe changes, metrics, path. Failed, diverged, running and
    waiting runs of studies are listed too, with the reason.

    The column `run` is the folder within the workspace, and what `feeb show`, `diff`, `plot`, `generate` and `--input` take. The column
    `changes` shows what its recipe sets beyond the recipe that it extends, `--set` included. Columns that do not fit the terminal are
    left out, the path first; --json has them all.

    Examples:
        feeb runs
        feeb runs pretrain --last 10 --json
    """
    from feeb_pipelines.summary import headline
    from feebcore.api import Run
    from feebcore.artifacts import Workspace
    from feebcore.study.planned import open_runs

    space = Workspace(workspace)
    damaged: list[dict[str, Any]] = []
    found = space.all(damaged=lambda folder, error: damaged.append(_row(Run(folder), "damaged", str(error))))
    rows = [*(_row(run, run.status) for run in (Run(folder, artifact) for folder, artifact in found)), *damaged]
    rows = [row for row in _with_runs(rows, open_runs(space)) if stage in (None, row["stage"])]
    rows.sort(key=lambda row: (row["created"], row["path"]), reverse=True)
    rows = rows[:last] if last is not None else rows
    if json:
        return print_json(rows)
    if not rows:
        what = "nothing" if stage is None else f"no artifact of stage {stage!r}"
        print(f"{what} in {space.root} yet; create some with feeb run RECIPE")
        return None
    print_table(
        ("age", "run", "status", "changes", "metrics", "path"),
        [(age(r["created"]), r["run"], _status(r), texts(r["changes"], r["stage"]), _notes(r, headline(r["metrics"])), r["path"]) for r in rows],
        prose=("changes", "metrics"),
        drop=("path", "age"),
    )
    return hint(f"feeb show {rows[0]['run']}", *([f"feeb diff {rows[1]['run']} {rows[0]['run']}"] if _comparable(rows) else []))


def _comparable(rows: Sequence[Mapping[str, Any]]) -> bool:
    return len(rows) > 1 and rows[0]["stage"] == rows[1]["stage"]


def _notes(row: Mapping[str, Any], metrics: str) -> str:
    """The reason of a run that is not finished, else its metrics, with a warning where parts were not checked."""
    return row["reason"] or "; ".join([*([f"unchecked parts: {', '.join(row['unchecked'])}"] if row["unchecked"] else []), metrics])


def _with_runs(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of artifacts with the state of the run that makes each, then a row per run of a study that has no folder."""
    states = {run["fingerprint"]: run for run in runs}
    for row in rows:
        run = states.get(row["fingerprint"])
        if run is not None and (row["status"] in ("running", "unfinished") or run["status"] == "diverged"):
            row |= {"status": run["status"], "reason": run["reason"]}
    known = {row["fingerprint"] for row in rows}
    others = []
    for run in runs:
        if run["fingerprint"] not in known:
            stage = "study" if run["study"].suffix == ".sqlite" else "pretrain"
            named = {"stage": stage, "name": run["run"], "fingerprint": run["fingerprint"], "run": f"{stage}/{run['run']}-{run['fingerprint']}".rstrip("-")}
            state = {"path": str(run["study"]), "status": run["status"], "reason": run["reason"]}
            others.append(named | state | {"created": "", "seconds": None, "progress": {}, "changes": {}, "metrics": {}, "unchecked": []})
    return rows + others


def _row(run: Run, status: str, reason: str = "") -> dict[str, Any]:
    named = {
        "stage": run.stage,
        "name": run.name,
        "fingerprint": run.fingerprint,
        "run": run.reference,
        "path": str(run.path),
        "status": status,
        "reason": reason,
    }
    progress = {key: run.progress[key] for key in ("name", "done", "total", "unit") if key in run.progress} if status != "damaged" else {}
    changes = {} if status == "damaged" else run.changes
    return named | {
        "created": run.created,
        "seconds": run.manifest.get("seconds"),
        "progress": progress,
        "changes": changes,
        "metrics": run.metrics,
        "unchecked": run.manifest.get("unchecked", []),
    }


def _status(row: Mapping[str, Any]) -> str:
    """'unfinished, 130/400 steps (32%)'."""
    return row["status"] + (f", {_progress(row['progress'])}" if row["progress"] else "")


def _progress(progress: Mapping[str, Any]) -> str:
    from feeb_pipelines.summary import number

    done, total = progress["done"], progress["total"]
    share = f" ({100 * done / total:.0f}%)" if total else ""
    return f"{number(round(done, 3))}/{number(round(total, 3))} {progress.get('unit', '')}".strip() + share


def age(created: str) -> str:
    """'3 min' since an ISO time; '2 h', '5 d'; '' for none."""
    if not created:
        return ""
    seconds = max(0.0, time.time() - datetime.fromisoformat(created).timestamp())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def texts(changes: Mapping[str, Any], stage: str = "") -> str:
    """Dotted keys with their values in one line; keys of `stage` without its name, those of other stages last."""
    own = {key.removeprefix(f"{stage}."): value for key, value in changes.items() if key.startswith(f"{stage}.") or "." not in key}
    return ", ".join(f"{key}={short(value)}" for key, value in own.items())


def short(value: Any) -> str:
    """A setting in few words: a part without options as its name."""
    import json

    if isinstance(value, Mapping) and set(value) == {"name"}:
        return str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def show(
    target: Annotated[str, Parameter(help=f"A run ({RUN}) or a recipe (YAML file).")],
    /,
    *,
    set: Set = [],  # noqa: B006
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Show a run: status, settings, inputs, metrics with their intervals, path and the end of its log.

    Of a recipe, print it resolved: `extends` merged and every default included. That output is itself a valid recipe; of a study, every
    run is printed, separated by `---`.

    Examples:
        feeb show pretrain/quickstart
        feeb show experiments/quickstart.yaml --set seed=3 > seed3.yaml
    """
    if is_recipe(target):
        return _show_recipe(target, set, json)
    from feebcore.api import open_run, runs_like
    from feebcore.errors import FeebError

    if set:
        raise FeebError(f"--set changes a recipe, and {target!r} is a run")
    run = open_run(target, workspace)
    if json:
        return print_json(_row(run, run.status) | {"section": run.section, "inputs": {name: str(path) for name, path in run.inputs.items()}})
    print("\n".join(_description(run)))
    others = [other.reference for other in runs_like(target, workspace) if other.path != run.path]
    if others:
        print(f"also named {target!r}: {', '.join(others[:6])}" + (f" and {len(others) - 6} more" if len(others) > 6 else ""))
    return hint(*next_steps(run))


def _show_recipe(recipe: str, set: list[str], json: bool) -> None:
    from feebcore.recipe import load_study, to_yaml

    recipes = load_study(recipe, set)
    if json:
        resolved = [r.resolved() for r in recipes]
        return print_json(resolved if len(resolved) > 1 else resolved[0])
    sys.stdout.write("---\n".join(to_yaml(r) for r in recipes))
    return hint(f"feeb plan {recipe}", f"feeb run {recipe}")


def _description(run: Run) -> list[str]:
    from feeb_pipelines.cli.display import duration
    from feeb_pipelines.summary import metric_text
    from feebcore.differences import metrics_of, pairs_of

    took = f" in {duration(run.manifest['seconds'])}" if run.artifact else f", {_progress(run.progress)}" if run.progress else ""
    facts = [("status", f"{run.status}{took}, begun {run.created} ({age(run.created)} ago)"), ("path", str(run.path))]
    if recipe := run.recipe_file:
        facts.append(("recipe", recipe))
    for title, entries in (
        ("made from", [f"{name}: {path.parent.name}/{path.name}" for name, path in run.inputs.items()]),
        ("changes", [f"{key} = {short(value)}" for key, value in run.changes.items()]),
    ):
        facts += [("" if i else title, text) for i, text in enumerate(entries)]
    if unchecked := run.manifest.get("unchecked"):
        facts.append(("unchecked", ", ".join(unchecked)))
    lines = [run.reference, *(f"  {name:<10} {text}" for name, text in facts)]
    if pairs := pairs_of(metrics_of(run)):
        lines.append("  metrics")
        width = max((len(name) for name, _ in pairs), default=0)
        lines += [f"    {name:<{width}}  {metric_text(value)}" for name, value in pairs]
    log, name = _log(run)
    if log:
        lines += [f"  log ({name})", *(f"    {line}" for line in log)]
    return lines


def _log(run: Run, count: int = 8) -> tuple[list[str], str]:
    """The last lines of what the stage printed, or else of what it reported, and the file they are from."""
    from feebcore.files import last_rows

    path = run.path / "log.txt"
    if path.is_file() and (lines := path.read_text(encoding="utf-8", errors="replace").splitlines()):
        return lines[-count:], "log.txt"
    rows = [str(row["text"]) for row in last_rows(run.path / "events.jsonl") if row.get("kind") == "log"]
    return rows[-count:], "events.jsonl"


def next_steps(run: Run) -> list[str]:
    """Commands that make sense with this run."""
    if run.artifact is None:
        recipe = run.recipe_file or "RECIPE"
        return [f"feeb run {recipe}" + ("" if run.status == "running" else "   # continues it")]
    steps = [f'feeb generate {run.reference} "PROMPT"'] if (run.path / "model").is_dir() and run.stage != "tokenizer" else []
    steps += [f"feeb plot {run.reference}"] if (run.path / "metrics.jsonl").exists() else []
    page = run.metrics.get("report")
    return steps or ([f"open {run.path / str(page)}"] if page else [f"feeb show {run.path / 'recipe.json'}"])


def diff(
    first: Annotated[str, Parameter(help=f"A run ({RUN}) or a recipe (YAML file).")],
    second: Annotated[str, Parameter(help="Another one.")],
    /,
    *,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Compare two runs or two recipes: settings, parts and versions that differ, and metrics side by side.

    Of two runs, the settings are those of the runs' stages and of every stage that they were built on.

    Examples:
        feeb diff pretrain/quickstart pretrain/wider
        feeb diff experiments/quickstart.yaml mine.yaml
    """
    from feebcore.differences import diff as difference

    result = difference(first, second, workspace)
    if json:
        return print_json(result)
    print(f"A: {result['a']}\nB: {result['b']}")
    for title in ("settings", "parts", "versions", "inputs"):
        if rows := result.get(title):
            print()
            print_table((title, "A", "B"), [(row["key"], _side(row["a"]), _side(row["b"])) for row in rows], prose=("A", "B"))
    if not any(result.get(title) for title in ("settings", "parts", "versions", "inputs")):
        print("no setting, part or version differs")
    if rows := result.get("metrics"):
        from feeb_pipelines.summary import metric_text

        print()
        print_table(
            ("metric", "A", "B", "B − A"),
            [(r["key"], metric_text(r["a"]), metric_text(r["b"]), "" if r["difference"] is None else f"{r['difference']:+.4g}") for r in rows],
        )
    return hint(f"feeb compare {first} {second}" if is_recipe(first) else f"feeb plot {first} {second}")


def _side(value: Any) -> str:
    return "—" if value is None else short(value)


COMMANDS = (runs, show, diff)
