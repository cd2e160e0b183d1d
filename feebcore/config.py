"""Typed options of parts and stages, and what each key means for identity.

A key is *identity* unless marked otherwise: it changes the result, so it enters the fingerprint of the
artifact. `Execution[...]` marks keys that say how the work is done (device, micro-batch, workers, paths);
`Observation[...]` marks keys that say what is watched (checkpoint_every, probes, trackers).

    class PretrainConfig(StageConfig):
        max_steps: int                                                  # identity
        device: Execution[str] = "auto"
        checkpoint_every: Observation[int] = 100
        optimizer: Annotated[Part, PartKey("optimizers")] = default_part("adamw")   # another part, chosen by name
"""

from __future__ import annotations

from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

T = TypeVar("T")


@dataclass(frozen=True)
class KeyRole:
    """Why a key exists: 'identity', 'execution' or 'observation'."""

    name: str


Execution = Annotated[T, KeyRole("execution")]
Observation = Annotated[T, KeyRole("observation")]


class HoldsPart:
    """Base of the annotation that says that a key holds a part (`PartKey` in feebcore/parts.py)."""


class Identified:
    """A value in a config that says itself what of it changes the result."""

    def identity(self) -> dict[str, Any]:
        raise NotImplementedError


class PartConfig(BaseModel):
    """Options of a part. Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    inert: ClassVar[tuple[str, ...]] = ()
    """For `feeb check`: options that by design do not change what the part computes where it is checked, as one for another device or
    for longer sequences. An attention lists which settings of the model it does not use, too: attention_dropout, context.window."""

    def check_run(self, max_steps: int) -> list[str]:
        """What is wrong with these options in a run of so many optimizer steps, each as 'option: what and what to do'."""
        return []

    @model_validator(mode="before")
    @classmethod
    def _what_pydantic_does_not_know(cls, data: Any) -> Any:
        """Options without a name are for the default part; true and false are no numbers."""
        if not isinstance(data, dict):
            return data
        named = dict(data)
        for key, field in cls.model_fields.items():
            value, default = data.get(key), field.default
            if isinstance(value, dict) and "name" not in value and isinstance(default, dict) and any(isinstance(m, HoldsPart) for m in field.metadata):
                named[key] = {**default, **value}
            if isinstance(value, bool) and {*(get_args(field.annotation) or [field.annotation])} <= {int, float, NoneType}:
                named[key] = str(value).lower()  # pydantic would take it for 1 or 0; as a word it is refused in its place
        return named


DETERMINISTIC = "use deterministic kernels only; auto: on a CPU, where they cost a few percent, not on CUDA, where they exclude the fastest ones"


class DataOrderConfig(PartConfig):
    """Options of a data order. by_source: it is given the sequences of each source (`BuildContext.sources`), and every sequence holds
    documents of one source. repeats: a sequence may come a second time before all others have come once."""

    by_source: ClassVar[bool] = False
    repeats: ClassVar[bool] = False

    def source_names(self) -> list[str]:
        """Every source that gets samples: with `by_source` the others are not packed, and a misspelled one is reported before anything
        runs. Empty: all."""
        return []

    def follows_length(self) -> bool:
        """Whether the order of the first steps depends on how many the run has."""
        return False


class LogitsProcessorConfig(PartConfig):
    """Options of a logits processor. truncates: it removes tokens; one that keeps every token possible says False, so that RL can
    train on what it sampled."""

    truncates: ClassVar[bool] = True


class AlgorithmConfig(PartConfig):
    """Options of an RL algorithm. compares_group: it compares the completions of one prompt, so it needs at least two. minibatches:
    optimizer steps per pass over the rollouts of a step."""

    compares_group: ClassVar[bool] = False

    minibatches: int = Field(1, ge=1, description="optimizer steps per pass over the rollouts")


class StageConfig(PartConfig):
    """Options of a stage: the section of the same name in a recipe."""

    def num_processes(self) -> int:
        """How many processes a 'worker' stage runs as on one machine; 0: one per GPU."""
        return 1


class NoOptions(PartConfig):
    """For parts that have none."""


def identity_of(config: BaseModel) -> dict[str, Any]:
    """The part of `config` that changes the result: identity keys that differ from their defaults, and parts.

    Chosen parts always appear (full name and revision), so that bumping a part's revision is seen. Equal identities mean equal
    identity keys: an optional sub-config that is None differs from one whose keys all have their defaults.
    """
    result: dict[str, Any] = {}
    for key, field in type(config).model_fields.items():
        if not is_identity(field):
            continue
        value = getattr(config, key)
        plain = _identity_value(value)
        always = field.is_required() or _has_part(value) or (isinstance(value, BaseModel) and plain)  # a sub-config may hold parts
        if always or plain != _identity_value(field.get_default(call_default_factory=True)):
            result[key] = plain
    return result


def is_identity(field: FieldInfo) -> bool:
    """Whether a key changes the result: it is marked neither `Execution` nor `Observation`."""
    return not any(isinstance(m, KeyRole) for m in field.metadata)


def _has_part(value: Any) -> bool:
    if isinstance(value, Identified):
        return True
    if isinstance(value, list | tuple):
        return any(_has_part(v) for v in value)
    if isinstance(value, dict):
        return any(_has_part(v) for v in value.values())
    return False


def _identity_value(value: Any) -> Any:
    if isinstance(value, Identified):
        return value.identity()
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, list | tuple):
        return [_identity_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _identity_value(v) for k, v in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
