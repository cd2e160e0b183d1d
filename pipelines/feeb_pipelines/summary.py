"""Metrics in few words, the same in tables of the command line and in Prefect's pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAIN = {
    "download": ("documents", "bytes"),
    "tokenizer": ("vocab_size", "bytes_per_token"),
    "shard": ("train_tokens", "val_tokens", "tokens_per_second"),
    "pretrain": ("val_bits_per_byte", "final_loss", "tokens_per_second"),
    "sweep": ("cells", "heldout_relative_error", "nearest_cell_error"),
    "sft": ("final_loss", "accuracy_sampled", "accuracy_greedy"),
    "rl": ("accuracy_before", "accuracy_after"),
    "compare": ("verdict",),
    "claims": ("agrees", "disagrees", "cannot_tell"),
    "report": ("report", "figures"),
}
"""What to show first of the built-in stages; of others, the first metrics they have."""


def highlights(stage: str, metrics: Mapping[str, Any], limit: int = 4) -> list[tuple[str, str]]:
    """Names and texts of a stage's most telling metrics."""
    flat = dict(flat_metrics(metrics))
    named = [(name, plain) for name in MAIN.get(stage, ()) if name in metrics and (plain := _short(metrics[name])) is not None]
    return named or [(name, number(value)) for name, value in list(flat.items())[:limit]]


def headline(stage: str, metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {text}" for name, text in highlights(stage, metrics))


def flat_metrics(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested metrics as dotted names, scalars only."""
    found: list[tuple[str, Any]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found += flat_metrics(value, f"{prefix}{name}.")
        elif value is None or isinstance(value, str | int | float | bool):
            found.append((f"{prefix}{name}", value))
    return found


def number(value: Any) -> str:
    """12345.678 as '12,346', 0.0123456 as '0.01235'; text as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and value == value and abs(value) != float("inf")):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _short(value: Any) -> str | None:
    if isinstance(value, Mapping):
        if "value" not in value:
            return None
        interval = f" ({number(value['low'])}–{number(value['high'])})" if "low" in value and "high" in value else ""
        return number(value["value"]) + interval
    return number(value)
