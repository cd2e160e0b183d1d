"""What differs between two runs, or between two recipes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feebcore.api import Run, open_run
from feebcore.artifacts import read_artifact
from feebcore.errors import FeebError
from feebcore.files import read_json
from feebcore.provenance import describe_plugins
from feebcore.recipe import flat, load


def diff(first: str | Path | Run, second: str | Path | Run, workspace: str | Path | None = None) -> dict[str, Any]:
    """What differs between two runs or two recipes, as `feeb diff` shows it.

    first, second: runs (names, fingerprints, folders or opened ones), or YAML files of recipes. The result has `settings`, `parts` and, of
    runs, `versions` and `inputs`: lists of {key, a, b}, None where a side lacks the key; and `metrics`, with `difference` = b - a.
    Raises FeebError for a run and a recipe.
    """
    both = [_is_recipe(one) for one in (first, second)]
    if both[0] != both[1]:
        raise FeebError(f"{str(first)!r} is a {'recipe' if both[0] else 'run'} and {str(second)!r} is a {'recipe' if both[1] else 'run'}; name two of a kind")
    if both[0]:
        return _of_recipes(str(first), str(second))
    return _of_runs(*(one if isinstance(one, Run) else open_run(one, workspace) for one in (first, second)))


def _is_recipe(one: str | Path | Run) -> bool:
    return not isinstance(one, Run) and (Path(one).is_file() or Path(one).suffix in (".yaml", ".yml"))


def _of_recipes(first: str, second: str) -> dict[str, Any]:
    a, b = (load(path) for path in (first, second))
    of_parts = [{f"{p['kind']}/{p['part']}": _version(p) for stage in r.stages for p in describe_plugins(r, stage)} for r in (a, b)]
    left, right = (flat({k: v for k, v in r.resolved().items() if k not in ("name", "description")}) for r in (a, b))
    return {"a": first, "b": second, "settings": differing(left, right), "parts": differing(*of_parts)}


def _of_runs(a: Run, b: Run) -> dict[str, Any]:
    lines = [_lineage(run) for run in (a, b)]
    shared = [stage for stage in lines[0] if stage in lines[1]]
    settings = [flat({stage: line[stage].section for stage in shared}) for line in lines]
    parts = [{f"{p['kind']}/{p['part']}": _version(p) for stage in shared for p in line[stage].manifest.get("plugins", [])} for line in lines]
    versions = []
    for run in (a, b):
        environment = run.manifest.get("environment", {})
        sources = {f"source of {key}": value for key, value in run.manifest.get("identity", {}).get("sources", {}).items()}
        versions.append(
            {k: environment[k] for k in ("feeb", "commit", "python", "cpus") if environment.get(k)} | dict(environment.get("packages", {})) | sources
        )
    inputs = [{name: f"{path.parent.name}/{path.name}" for name, path in run.inputs.items()} for run in (a, b)]
    return {
        "a": a.reference,
        "b": b.reference,
        "settings": differing(*settings),
        "parts": differing(*parts),
        "versions": differing(*versions) if a.artifact and b.artifact else [],
        "inputs": differing(*inputs),
        "metrics": _side_by_side(metrics_of(a), metrics_of(b)),
    }


def _version(part: Mapping[str, str]) -> str:
    return f"{part['version'] or 'file'}, revision {part['revision']}"


def _lineage(run: Run) -> dict[str, Run]:
    """The runs that this one was built on, by stage, the first first, itself last."""
    found: dict[str, Run] = {}
    for path in run.inputs.values():
        if path.is_dir():
            found |= _lineage(Run(path, read_artifact(path)))
    return found | {run.stage: run}


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The keys with different values: {key, a, b}; None where a side lacks the key."""
    keys = list(dict.fromkeys([*a, *b]))
    return [{"key": key, "a": a.get(key), "b": b.get(key)} for key in keys if a.get(key) != b.get(key)]


def metrics_of(run: Run) -> dict[str, Any]:
    """The run's metrics; of benchmarks, their results, which have the intervals."""
    path = run.path / "results.json"
    return read_json(path) if run.artifact and "scores" in run.artifact.makes and path.exists() else run.metrics


def _side_by_side(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number of either run, with the difference where both have it. Intervals stay whole."""
    left, right = dict(pairs_of(a)), dict(pairs_of(b))
    rows = []
    for key in dict.fromkeys([*left, *right]):
        values = number_of(left.get(key)), number_of(right.get(key))
        difference = values[1] - values[0] if values[0] is not None and values[1] is not None else None
        rows.append({"key": key, "a": left.get(key), "b": right.get(key), "difference": difference})
    return rows


def pairs_of(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as dotted names; a value with its interval stays whole."""
    pairs: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping) and "value" not in value:
            pairs += pairs_of(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            pairs.append((f"{prefix}{name}", value))
    return pairs


def number_of(value: Any) -> float | None:
    """The number of a metric, of an interval its value; None for text and what is missing."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
