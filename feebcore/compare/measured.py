"""What the bits per byte of a page are of, in one sentence: which weights, how much text."""

from __future__ import annotations

from collections.abc import Iterable

from feebcore.train.config import TrainSection


def measured(sections: Iterable[TrainSection], shares: Iterable[float | None]) -> str:
    """sections: of all runs. shares: of the validation text that each was scored on, None: all of it."""
    averaged = {section.ema_decay > 0 for section in sections}
    weights = {
        frozenset({False}): "the weights after the last step",
        frozenset({True}): "the moving average of the weights (ema_decay)",
    }.get(frozenset(averaged), "the weights after the last step, or of their moving average in recipes with ema_decay")
    parts = sorted({1.0 if share is None else share for share in shares})
    text = "all of the validation text" if parts in ([], [1.0]) else f"{' or '.join(f'{share:.0%}' for share in parts)} of the validation text"
    return f"Bits per byte are of {weights}, on {text}, which is the same for every seed."
