"""From a cell's overrides to the training section it means, and what that costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from feebcore.config import DataOrderConfig
from feebcore.errors import RecipeError, did_you_mean
from feebcore.parts import Part
from feebcore.scaling.planning import ScaleLR, SharedSteps
from feebcore.scaling.points import Cost, Measure
from feebcore.train.checks import check_training
from feebcore.train.scaled import lr_overrides

if TYPE_CHECKING:
    from feebcore.train.config import TrainSection

Config = TypeVar("Config", bound=BaseModel)


def with_overrides(section: Config, overrides: Mapping[str, Any]) -> Config:
    """`section` with dotted keys set and checked again: `{"architecture.d_model": 64, "max_steps": 100}`.

    Chosen parts are kept as they are, so no registry is asked unless a value names a part. Raises RecipeError.
    """
    nested: dict[str, dict[str, Any]] = {}
    changes: dict[str, Any] = {}
    for key, value in overrides.items():
        first, dot, rest = key.partition(".")
        if first not in type(section).model_fields:
            raise RecipeError(f"unknown key {first!r}; {did_you_mean(first, type(section).model_fields)}")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            changes[first] = value
    for first, inner in nested.items():
        child = changes.get(first, getattr(section, first))
        if isinstance(child, Part):
            changes[first] = Part(child.kind, child.spec, with_overrides(child.config, inner), child.shared)
        elif isinstance(child, BaseModel):
            changes[first] = with_overrides(child, inner)
        else:
            raise RecipeError(f"{first} is {child!r}, which has no key {next(iter(inner))!r}")
    try:
        return type(section).model_validate({k: getattr(section, k) for k in type(section).model_fields} | changes)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'options'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors(include_url=False)]
        raise RecipeError("; ".join(problems)) from None


def measure_with(train: TrainSection, vocab_size: int) -> Measure:
    """The exact cost of `train` under overrides, from a model that has no weights (meta device). Raises RecipeError where they set `max_steps` and
    no such run can be, as one shorter than its warmup."""
    from feebcore.model.build import count_training

    built: dict[Part, Any] = {}  # an objective may load a teacher
    known: dict[str, Cost] = {}

    def measure(overrides: Mapping[str, Any]) -> Cost:
        key = json.dumps(dict(overrides), sort_keys=True)
        if key not in known:
            known[key] = count(overrides)
        return known[key]

    def count(overrides: Mapping[str, Any]) -> Cost:
        section = with_overrides(train, overrides)
        if "max_steps" in overrides:
            if problems := check_training(section):
                raise RecipeError("; ".join(problems))
            return measure({key: value for key, value in overrides.items() if key != "max_steps"})
        if (objective := built.get(section.objective)) is None:
            objective = built[section.objective] = section.objective.build()
        counts, flops_per_token = count_training(section.architecture, objective, vocab_size, section.seq_len)
        return Cost(counts, flops_per_token, section.batch_size, section.seq_len)

    return measure


def shared_steps_of(train: TrainSection, vocab_size: int) -> SharedSteps:
    """What runs of `train` under overrides have in common with longer ones, by their schedules and their data order."""
    from feebcore.model.build import build_model
    from feebcore.train.pretrain import same_steps

    def shared(overrides: Mapping[str, Any], longer: int) -> int:
        section = with_overrides(train, overrides)
        assert isinstance(section.data_order.config, DataOrderConfig)
        if section.data_order.config.follows_length():
            return 0
        return same_steps(section, longer, build_model(section.architecture, vocab_size, section.seq_len, device="meta"))

    return shared


def scale_lr_of(train: TrainSection) -> ScaleLR:
    """Learning rates of `train` under overrides, times a factor."""

    def scale(overrides: Mapping[str, Any], factor: float) -> dict[str, Any]:
        return dict(lr_overrides(with_overrides(train, overrides).optimizer, factor)) if factor != 1.0 else {}

    return scale
