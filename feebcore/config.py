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

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import PydanticCustomError, core_schema

from feebcore.errors import FeebError

if TYPE_CHECKING:
    from feebcore.specs import PartSpec

T = TypeVar("T")


@dataclass(frozen=True)
class KeyRole:
    """Why a key exists: 'identity', 'execution' or 'observation'."""

    name: str


Execution = Annotated[T, KeyRole("execution")]
Observation = Annotated[T, KeyRole("observation")]


class PartConfig(BaseModel):
    """Options of a part. Unknown keys are errors; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _options_without_a_name_are_for_the_default_part(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        named = dict(data)
        for key, field in cls.model_fields.items():
            value, default = data.get(key), field.default
            if isinstance(value, dict) and "name" not in value and isinstance(default, dict) and any(isinstance(m, PartKey) for m in field.metadata):
                named[key] = {**default, **value}
        return named


class StageConfig(PartConfig):
    """Options of a stage: the section of the same name in a recipe."""


class NoOptions(PartConfig):
    """For parts that have none."""


@dataclass(frozen=True)
class Part:
    """A part chosen in a recipe: its spec and its validated options. `build(...)` makes the thing itself."""

    kind: str
    spec: PartSpec
    config: PartConfig
    shared: bool = False  # other plugins claim the bare name too

    @property
    def name(self) -> str:
        """The name a recipe writes: bare for built-in parts that share it with nobody, `distribution/name` for others."""
        return self.spec.name if self.spec.distribution in ("", "feeb") and not self.shared else self.spec.full_name

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Import the part's factory and call it: `factory(config, *args, **kwargs)`."""
        return self.spec.load()(self.config, *args, **kwargs)

    def build_with(self, *args: Any, **offered: Any) -> Any:
        """As `build`, with those of `offered` that the factory names among its arguments."""
        named = inspect.signature(self.spec.load()).parameters
        return self.build(*args, **{name: value for name, value in offered.items() if name in named})

    def dump(self) -> dict[str, Any]:
        """`{name: …, option: …}`, plain JSON values, all options spelled out."""
        return {"name": self.name, **self.config.model_dump(mode="json")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and (self.kind, self.spec.full_name, self.config) == (
            other.kind,
            other.spec.full_name,
            other.config,
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.spec.full_name))


@dataclass(frozen=True)
class PartKey:
    """Marks a `Part` key with the kind its part comes from; resolves names while a config is validated.

    Accepts `name`, `{name: …, option: …}` or a `Part`. The registry is taken from the validation context
    (`{"registry": …}`), else the process-wide one.
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._resolve,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda part: part.dump()),
        )

    def _resolve(self, value: Any, info: core_schema.ValidationInfo) -> Part:
        from feebcore.registry import get_registry

        if isinstance(value, Part):
            if value.kind != self.kind:
                raise PydanticCustomError("part", f"a part of kind {value.kind!r} where {self.kind!r} is wanted")
            return value
        if isinstance(value, str):
            name, options = value, {}
        elif isinstance(value, dict) and isinstance(value.get("name"), str):
            name, options = value["name"], {k: v for k, v in value.items() if k != "name"}
        else:
            raise PydanticCustomError("part", f"write a name of kind {self.kind!r}, or {{name: …, option: …}}; `feeb parts {self.kind}` lists them")
        registry = (info.context or {}).get("registry") or get_registry()
        try:
            spec = registry.resolve(self.kind, name)
        except FeebError as error:
            raise PydanticCustomError("part", "{why}", {"why": str(error)}) from None
        try:
            config = spec.config.model_validate(options, context=info.context)
        except ValidationError as error:  # carried out whole, so that the recipe's message has the inner key and its line
            details = [
                {"loc": list(e["loc"]), "type": e["type"], "msg": e["msg"], "input": e["input"], "ctx": e.get("ctx", {})}
                for e in error.errors(include_url=False)
            ]
            why = "; ".join(f"{'.'.join(map(str, d['loc'])) or 'options'}: {d['msg']}" for d in details)
            context = {"why": f"{spec.name}: {why}", "details": details, "known": sorted(spec.config.model_fields)}
            raise PydanticCustomError("part_options", "{why}", context) from None
        return Part(self.kind, spec, config, registry.shared(self.kind, spec.name))


def default_part(name: str, **options: Any) -> Any:
    """The default of a `Part` key: a part by name, resolved when the config is validated."""
    return {"name": name, **options}


def identity_of(config: BaseModel) -> dict[str, Any]:
    """The part of `config` that changes the result: identity keys that differ from their defaults, and parts.

    Chosen parts always appear (full name and revision), so that bumping a part's revision is seen.
    """
    found: dict[str, Any] = {}
    for key, field in type(config).model_fields.items():
        if any(isinstance(m, KeyRole) for m in field.metadata):
            continue
        value = getattr(config, key)
        plain = _identity_value(value)
        if _has_part(value) or field.is_required():
            found[key] = plain
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            if plain:
                found[key] = plain
        elif value != default:
            found[key] = plain
    return found


def _has_part(value: Any) -> bool:
    if isinstance(value, Part):
        return True
    if isinstance(value, list | tuple):
        return any(_has_part(v) for v in value)
    if isinstance(value, dict):
        return any(_has_part(v) for v in value.values())
    return False


def _identity_value(value: Any) -> Any:
    if isinstance(value, Part):
        plain: dict[str, Any] = {"part": value.spec.full_name, "revision": value.spec.revision}
        options = identity_of(value.config)
        return plain | ({"options": options} if options else {})
    if isinstance(value, BaseModel):
        return identity_of(value)
    if isinstance(value, list | tuple):
        return [_identity_value(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _identity_value(v) for k, v in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def parts_in(value: Any) -> list[Part]:
    """Every part chosen inside a config, depth first."""
    if isinstance(value, Part):
        return [value, *parts_in(value.config)]
    if isinstance(value, BaseModel):
        return [p for key in type(value).model_fields for p in parts_in(getattr(value, key))]
    if isinstance(value, list | tuple):
        return [p for v in value for p in parts_in(v)]
    if isinstance(value, dict):
        return [p for v in value.values() for p in parts_in(v)]
    return []
