"""Numbers of finished runs: held-out bits per byte, metrics of the manifest, rows of the training log, what probes wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feebcore.artifacts import Artifact
from feebcore.claim import HELD_OUT
from feebcore.errors import FeebError
from feebcore.files import read_jsonl

STAGE = "pretrain"
LOG = "metrics.jsonl"


def end_of(artifact: Artifact) -> tuple[str, int, float]:
    """What ended a run (loss, flat or max_steps), after which step, at which training loss in nats. Raises FeebError where it was not asked."""
    stopped = artifact.metrics.get("stopped")
    if stopped is None:
        raise FeebError(f"{artifact.path}: `reaches` needs runs that end once they are there; set {STAGE}.stop_at_loss and {STAGE}.stop_when_flat")
    return stopped["by"], artifact.metrics["steps"], stopped["loss"]


def measure(artifact: Artifact, metric: str, step: int | None = None) -> float:
    """One number of a run of pretrain; step None: at its end. Raises FeebError that says what there is instead."""
    if ":" in metric:
        name, _, path = metric.partition(":")
        rows = read_jsonl(artifact.path / "probes" / f"{name}.jsonl")
        row = _at(rows, step)
        if row is None:
            raise FeebError(
                f"{artifact.path}: probe {name!r} wrote nothing{'' if step is None else f' at step {step}'}; name it in pretrain.callbacks (a finished run is not trained again for that: remove its folder), and see its `every`"
            )
        return _number(_walk(row, path, metric), metric)
    key = "val_bits_per_byte" if metric == HELD_OUT else metric
    if step is None and key in artifact.metrics:
        return _number(artifact.metrics[key], metric)
    split = "validation" if metric == HELD_OUT else "train"
    rows = [row for row in read_jsonl(artifact.path / LOG) if metric in row and row.get("split", split) == split]
    row = _at(rows, step)
    if row is None:
        raise FeebError(
            f"{artifact.path}: no {metric!r}{'' if step is None else f' at step {step}'} in {LOG}; validation_every and log_every say at which steps there are rows (a finished run is not trained again for them)"
        )
    return _number(row[metric], metric)


def _at(rows: list[dict[str, Any]], step: int | None) -> dict[str, Any] | None:
    chosen = rows if step is None else [row for row in rows if row["step"] == step]
    return chosen[-1] if chosen else None


def _walk(value: Any, path: str, metric: str) -> Any:
    for key in path.split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            has = f"; there is {', '.join(map(str, value))}" if isinstance(value, Mapping) else ""
            raise FeebError(f"metric {metric!r}: no {key!r} there{has}") from None
    return value


def _number(value: Any, metric: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FeebError(f"metric {metric!r} is not a number but {value!r}"[:200])
    return float(value)
