"""Parts chosen by name: the recipe key that holds one, the chosen part, and how a name becomes one.

class PretrainConfig(StageConfig):
    optimizer: Annotated[Part, PartKey("optimizers")] = default_part("adamw")
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, PydanticUndefined, core_schema

from feebcore.config import HoldsPart, Identified, PartConfig, identity_of, is_identity
from feebcore.errors import FeebError, PluginError
from feebcore.part_source import hash_of
from feebcore.protocols import BuildContext
from feebcore.registry import Registry, get_registry
from feebcore.specs import PartSpec, load_object


@dataclass(frozen=True)
class Part(Identified):
    """A part chosen in a recipe: its spec and its validated options. `build(...)` makes the thing itself."""

    kind: str
    spec: PartSpec
    config: PartConfig
    shared: bool = False  # other plugins claim the bare name too

    @property
    def name(self) -> str:
        """The name a recipe writes: bare for built-in parts that share it with nobody, `distribution/name` for others."""
        return self.spec.name if self.spec.distribution in ("", "feeb") and not self.shared else self.spec.full_name

    def build(self, context: BuildContext | None = None, **fields: Any) -> Any:
        """Import the part's factory and call it: `factory(config, context)`. fields: of the BuildContext, over those of `context`.

        Raises PluginError, saying what it lacks, where the result is not what the kind's parts are (`PartSpec.base`)."""
        context = context or BuildContext()
        made = self.spec.load()(self.config, dataclasses.replace(context, **fields) if fields else context)
        if self.spec.base and (problem := _unlike(made, load_object(self.spec.base, self.name), self.spec.base.replace(":", "."))):
            raise PluginError(f"{self.kind}: {self.name} is built as {'None' if made is None else f'a {type(made).__name__}'}; {problem}")
        return made

    def identity(self) -> dict[str, Any]:
        """Full name, revision, hash of the source, and the options that differ from their defaults."""
        options = identity_of(self.config)
        return identity_of_spec(self.spec) | ({"options": options} if options else {})

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


def _unlike(made: Any, base: Any, name: str) -> str:
    """What to do where `made` is no instance of the class, or lacks members of the protocol, `base`; '' where nothing is wrong."""
    if base is Callable:
        return "" if callable(made) else "it must be callable"
    if not getattr(base, "_is_protocol", False):
        return "" if isinstance(made, base) else f"write it as a class that derives from {name}"
    members = [member for member in (*base.__annotations__, *vars(base)) if member == "__call__" or not member.startswith("_")]
    missing = [member for member in dict.fromkeys(members) if not hasattr(made, member)]
    return f"it lacks {', '.join(missing)} of {name}" if missing else ""


@dataclass(frozen=True)
class PartKey(HoldsPart):
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
        if isinstance(value, Part):
            if value.kind != self.kind:
                raise PydanticCustomError("part", f"a part of kind {value.kind!r} where {self.kind!r} is expected")
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


def identity_of_spec(spec: PartSpec) -> dict[str, Any]:
    """What a part is, whatever its options: full name, revision, and the hash of its source where a plugin has it."""
    source = hash_of(spec)
    return {"part": spec.full_name, "revision": spec.revision} | ({"source": source} if source else {})


def default_part(name: str, **options: Any) -> Any:
    """The default of a `Part` key: a part by name, resolved when the config is validated."""
    return {"name": name, **options}


def parts_in(value: Any, identity_only: bool = False) -> list[Part]:
    """Every part chosen inside a config, depth first. identity_only: without those under `Execution` and `Observation` keys."""
    inside = functools.partial(parts_in, identity_only=identity_only)
    if isinstance(value, Part):
        return [value, *inside(value.config)]
    if isinstance(value, BaseModel):
        keys = [key for key, field in type(value).model_fields.items() if is_identity(field) or not identity_only]
        return [part for key in keys for part in inside(getattr(value, key))]
    if isinstance(value, list | tuple | dict):
        return [part for item in (value.values() if isinstance(value, dict) else value) for part in inside(item)]
    return []


def with_precision(value: Any, precision: Callable[[], str]) -> Any:
    """The config, part or list, with every option `precision`, or `…_precision`, that is 'auto' set to what `precision()` says."""

    def settle(config: BaseModel, key: str, field: FieldInfo) -> Any:
        return precision() if is_identity(field) and key.endswith("precision") and getattr(config, key) == "auto" else KEEP

    return _settled(value, settle)


def with_part(value: Any, kind: str, part: Part) -> Any:
    """The config, part or list, with `part` in every key that holds a part of this kind and was left out."""

    def settle(config: BaseModel, key: str, field: FieldInfo) -> Any:
        return part if PartKey(kind) in field.metadata and key not in config.model_fields_set else KEEP

    return _settled(value, settle)


KEEP = object()


def _settled(value: Any, settle: Callable[[BaseModel, str, FieldInfo], Any]) -> Any:
    """A copy in which each key of each config has the value that `settle(config, key, field)` gives, if not KEEP; itself where none does."""
    if isinstance(value, Part):
        config = _settled(value.config, settle)
        return value if config is value.config else dataclasses.replace(value, config=config)
    if isinstance(value, list | tuple):
        items = [_settled(item, settle) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)
    if not isinstance(value, BaseModel):
        return value
    changes = {}
    for key, field in type(value).model_fields.items():
        old, new = getattr(value, key), settle(value, key, field)
        new = _settled(old, settle) if new is KEEP else new
        if new is not old:
            changes[key] = new
    return value.model_copy(update=changes) if changes else value


def resolve_part(kind: str, value: Any, registry: Registry | None = None) -> Part:
    """The part that `value` (a name, or {name: …, option: …}) means on `kind`, as in a recipe. Raises ValidationError."""
    return TypeAdapter(Annotated[Part, PartKey(kind)]).validate_python(value, context={"registry": registry})  # type: ignore[arg-type]


def part_kind(field: FieldInfo) -> str:
    """The kind of the part, or of the parts in the list, that an option holds; '' where it holds none."""

    def inside(annotation: Any) -> str:
        own = next((m.kind for m in typing.get_args(annotation)[1:] if isinstance(m, PartKey)), "")
        return own or next((kind for a in typing.get_args(annotation) if (kind := inside(a))), "")

    return next((m.kind for m in field.metadata if isinstance(m, PartKey)), "") or inside(field.annotation)


def type_text(annotation: Any, quote: str = "") -> str:
    """The type of an option for readers: 'int', 'part of optimizers', 'auto, cpu or cuda'. quote: around literal values."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        kind = next((m.kind for m in arguments[1:] if isinstance(m, PartKey)), None)
        return f"part of {kind}" if kind else type_text(arguments[0], quote)
    if origin is typing.Literal:
        values = [f"{quote}{value}{quote}" for value in arguments]
        return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_text(a, quote) for a in arguments)
    if origin in (list, tuple, dict):
        return f"{origin.__name__} of {', '.join(type_text(a, quote) for a in arguments if a is not Ellipsis)}"
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).rpartition(".")[2]


def default_of(field: FieldInfo) -> str:
    """The default of an option for readers, as a recipe would have it: 'required', the name of a part without options, else the value; ''
    where there is none, and for a section, whose options have defaults of their own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is PydanticUndefined or isinstance(value, BaseModel) else _inline(value)


_PLAIN = re.compile(r"([A-Za-z][\w./-]*( [\w./-]+)*)?")
"""Text that needs no quotes in YAML."""


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Part):
        value = {"name": value.name} | value.config.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return value["name"] if set(value) == {"name"} else "{" + ", ".join(f"{k}: {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_inline(v) for v in value)}]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in ("true", "false", "null", "yes", "no", "on", "off"):
        return value
    return json.dumps(value, ensure_ascii=False)
