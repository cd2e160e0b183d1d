"""Options of a part, and of the parts inside it, times a factor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from feebcore.parts import Part

Picks = Callable[[str, Any], bool]
"""`picks(key, value)`: whether this option is scaled."""


def is_lr(key: str, value: Any) -> bool:
    """`lr`, and every number whose name ends in `_lr`."""
    return isinstance(value, float | int) and (key == "lr" or key.endswith("_lr"))


def scaled(value: Any, factor: float, picks: Picks, whole: bool = True) -> Any:
    """A copy in which every option that `picks` is times `factor`; whole: a number of steps, at least 1."""
    if isinstance(value, Part):
        return Part(value.kind, value.spec, scaled(value.config, factor, picks, whole), value.shared)
    if isinstance(value, list | tuple):
        return type(value)(scaled(item, factor, picks, whole) for item in value)
    if not isinstance(value, BaseModel):
        return value
    changes = {}
    for key in type(value).model_fields:
        old = getattr(value, key)
        if picks(key, old):
            changes[key] = (max(1, round(old * factor)) if old else old) if whole else old * factor
        else:
            changes[key] = scaled(old, factor, picks, whole)
    return value.model_copy(update=changes)


def scaled_lrs(optimizer: Part, factor: float) -> Part:
    """The optimizer with every learning rate times `factor`, those of an optimizer inside it too."""
    result: Part = scaled(optimizer, factor, is_lr, whole=False)
    return result


def lr_overrides(optimizer: Part, factor: float, prefix: str = "optimizer") -> dict[str, float]:
    """Dotted keys of every learning rate and their values times `factor`."""
    found: dict[str, float] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Part):
            value = value.config
        if isinstance(value, BaseModel):
            for key in type(value).model_fields:
                inner = getattr(value, key)
                if is_lr(key, inner):
                    found[f"{path}.{key}"] = float(f"{inner * factor:.6g}")
                else:
                    walk(inner, f"{path}.{key}")

    walk(optimizer, prefix)
    return found
