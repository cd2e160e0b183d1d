"""Metrics in few words, the same in tables of the command line and in Prefect's pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIRST = (
    *("verdict", "agrees", "disagrees", "cannot_tell"),
    *("val_bits_per_byte", "accuracy_before", "accuracy_after", "final_loss", "accuracy_sampled", "accuracy_greedy"),
    *("runs", "heldout_relative_error", "nearest_run_error"),
    *("documents", "bytes", "train_tokens", "val_tokens", "vocab_size", "bytes_per_token", "report", "figures", "tokens_per_second"),
)
"""Metrics to show first, whichever stage has them; where there is none of them, the first that it has."""


def highlights(metrics: Mapping[str, Any], limit: int = 4) -> list[tuple[str, str]]:
    """Names and texts of the most telling metrics."""
    named = [(name, text) for name in FIRST if name in metrics and (text := _short(metrics[name])) is not None]
    return (named or [(row["metric"], row["value"]) for row in metric_rows(metrics)])[:limit]


def headline(metrics: Mapping[str, Any]) -> str:
    """The most telling metrics in one line."""
    return ", ".join(f"{name} {text}" for name, text in highlights(metrics))


def metric_rows(metrics: Mapping[str, Any], prefix: str = "") -> list[dict[str, str]]:
    """A table of every metric: scalars, intervals of two numbers, and lists of sentences such as the caveats of a law."""
    rows: list[dict[str, str]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            rows += metric_rows(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            if len(value) == 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
                rows.append({"metric": f"{prefix}{name}", "value": f"{number(value[0])} to {number(value[1])}"})
            rows += [{"metric": f"{prefix}{name}", "value": text} for text in value if isinstance(text, str)]
        elif value is None or isinstance(value, str | int | float | bool):
            rows.append({"metric": f"{prefix}{name}", "value": number(value)})
    return rows


def metric_text(value: Any) -> str:
    """A metric with its interval and number of samples, as '0.4 (0.36–0.44, n 512)'; '—' for None."""
    if not isinstance(value, Mapping):
        return "—" if value is None else number(value)
    ends = f"{number(value['low'])}–{number(value['high'])}" if value.get("low") is not None and value.get("high") is not None else ""
    inside = ", ".join(filter(None, [ends, f"n {value['n']}" if value.get("n") else ""]))
    return number(value["value"]) + (f" ({inside})" if inside else "")


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
        count = f", n {number(value['n'])}" if "n" in value else ""
        interval = f" ({number(value['low'])}–{number(value['high'])}{count})" if "low" in value and "high" in value else ""
        return number(value["value"]) + interval
    return number(value)
