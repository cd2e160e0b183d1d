"""`feeb parts`, `plugins`: what recipes can use, and where it comes from."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, Plugin
from feeb_pipelines.cli.tables import hint, print_json, print_table

if TYPE_CHECKING:
    from pydantic import BaseModel

    from feebcore.registry import Registry
    from feebcore.specs import PartSpec

MODEL = {"num_layers": 4, "d_model": 256, "num_heads": 4}
VOCAB_SIZE, SEQ_LEN = 4096, 256


def parts(
    name: Annotated[str | None, Parameter(help="A kind, e.g. optimizers, or a part, e.g. lion or optimizers/lion.")] = None,
    /,
    *,
    plugin: Plugin = [],  # noqa: B006
    json: Json = False,
) -> None:
    """List the parts that a recipe can use, by kind; of one part, show its options, equation, source, cost and where it fits.

    Examples:
        feeb parts
        feeb parts optimizers --json
        feeb parts lion
    """
    from feebcore.errors import UnknownPartError, did_you_mean
    from feebcore.hookspecs import KINDS
    from feebcore.registry import get_registry

    registry = get_registry(plugin_files(plugin))
    every = registry.parts()
    chosen = [(kind, spec) for kind, spec in every if name in (None, kind)]
    alone = not chosen
    chosen = chosen or [(k, s) for k, s in every if name in (s.name, s.full_name, f"{k}/{s.name}", f"{k}/{s.full_name}")]
    if not chosen:
        known = [*KINDS, *(spec.name for _, spec in every)]
        text = str(name).rpartition("/")[2]
        near = did_you_mean(text, known)
        raise UnknownPartError(f"there is no kind or part {name!r}; {near if near.startswith('did') else 'feeb parts lists them all'}")
    if json:
        return print_json([_row(kind, spec) for kind, spec in chosen])
    if alone:
        print("\n\n".join("\n".join(_description(kind, spec, registry)) for kind, spec in chosen))
        return hint(f"feeb check {chosen[0][0]}/{chosen[0][1].name}")
    print_table(
        ("kind", "part", "summary", "reference"),
        [(kind, _short(spec), spec.summary, spec.reference) for kind, spec in chosen],
        prose=("summary", "reference"),
        drop=("reference",),
    )
    return hint(f"feeb parts {chosen[0][1].name}   # its options", "optimizer: {name: lion, lr: 1e-4}   # in a recipe")


def plugin_files(plugin: Sequence[str]) -> tuple[Path, ...]:
    return tuple(Path(p).resolve() for p in plugin)


def _short(spec: PartSpec) -> str:
    return spec.name if spec.full_name.startswith("feeb/") else spec.full_name


def _row(kind: str, spec: PartSpec) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": spec.name,
        "full_name": spec.full_name,
        "distribution": spec.distribution,
        "summary": spec.summary,
        "reference": spec.reference,
        "equation": spec.equation,
        "revision": spec.revision,
        "origin": spec.origin,
        "options": {key: _default(field) for key, field in spec.config.model_fields.items()},
    }


def _default(field: Any) -> Any:
    value = "required" if field.is_required() else field.get_default(call_default_factory=True)
    return json_module.loads(json_module.dumps(value, default=str))


def _description(kind: str, spec: PartSpec, registry: Registry) -> list[str]:
    """Everything about one part, for reading."""
    facts = [
        ("summary", spec.summary),
        ("equation", spec.equation),
        ("reference", spec.reference),
        ("source", _source(spec)),
        ("plugin", f"{spec.distribution} ({spec.origin}), revision {spec.revision}"),
        ("goes into", ", ".join(dict.fromkeys(_homes(kind, registry)))),
    ]
    if kind == "stages":
        facts += [("needs", ", ".join(need.name for need in spec.needs)), ("makes", ", ".join(spec.makes))]  # type: ignore[attr-defined]
    elif cost := _cost(kind, spec, registry):
        facts.append(("cost", cost))
    lines = [f"{kind}/{_short(spec)}"]
    for name, text in facts:
        lines += [f"  {name if i == 0 else '':<10} {line}" for i, line in enumerate(text.splitlines())]
    if not spec.config.model_fields:
        return [*lines, "  options    none"]
    return [*lines, "  options", *(f"    {line}" for line in _option_lines(spec.config))]


def _option_lines(config: type[BaseModel]) -> list[str]:
    from feeb_pipelines.cli.tables import table_lines, terminal_width

    width = terminal_width()
    rows = list(_options(config))
    return table_lines(("key", "type", "default", "description"), rows, width and width - 4, prose=("type", "default", "description"), narrow=16)


def _options(config: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """(key, type, default, description) of every option, those of sections within it included."""
    import inspect

    from pydantic import BaseModel

    from feebcore.parts import default_of, part_kind, type_text

    for key, field in config.model_fields.items():
        inner = field.annotation
        if inspect.isclass(inner) and issubclass(inner, BaseModel):
            yield from _options(inner, f"{prefix}{key}.")
            continue
        kind = part_kind(field)
        text = f"part of {kind}" if kind and "list" not in str(inner) else f"list of parts of {kind}" if kind else type_text(inner)
        yield f"{prefix}{key}", text + _limits(field), default_of(field), field.description or ""


def _limits(field: Any) -> str:
    """' ≥ 0, < 1' of a number that has limits."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return "".join(f", {sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if getattr(m, name, None) is not None).replace(
        ",", "", 1
    )


def _source(spec: PartSpec) -> str:
    """The file of its implementation; '' when it cannot be found."""
    import importlib.util
    import inspect

    try:
        if not isinstance(spec.build, str):
            return str(inspect.getsourcefile(spec.build) or "")
        found = importlib.util.find_spec(spec.build.partition(":")[0])  # imports the packages around it, which load no torch
    except (ImportError, TypeError, ValueError):
        return ""
    return str(found.origin or "") if found else ""


def _homes(kind: str, registry: Registry) -> Iterator[str]:
    """The keys that take a part of this kind: 'pretrain.optimizer', 'transformer.attention'."""
    from feebcore.parts import part_kind

    for _, owner in registry.parts():
        for key, field in owner.config.model_fields.items():
            if part_kind(field) == kind:
                yield f"{owner.name}.{key}"
    if kind == "stages":
        yield "stages"


def _cost(kind: str, spec: PartSpec, registry: Registry) -> str:
    """Parameters, FLOPs and cache of a small model with this part, and with the part that is the default; '' for what is no part of a model."""
    from feebcore.parts import part_kind

    transformer = registry.resolve("architectures", "feeb/transformer").config
    key = next((key for key, field in transformer.model_fields.items() if part_kind(field) == kind), None)
    if key is None:
        return ""
    own = _counts(registry, {key: spec.full_name})
    usual = transformer.model_fields[key].get_default()
    size = f"{MODEL['num_layers']} layers of width {MODEL['d_model']}, vocabulary {VOCAB_SIZE}, {SEQ_LEN} tokens"
    if isinstance(own, str):
        return f"not counted in a model of {size}: {own}"
    base = _counts(registry, {})
    compared = own if isinstance(base, str) else base
    differences = [f" ({o - b:+,.0f} vs. {usual['name']})" if o != b else "" for o, b in zip(own, compared, strict=True)]
    names = ("parameters", "FLOPs per token", "cache bytes per token")
    return f"in a model of {size}:\n" + "\n".join(f"{value:,.0f} {name}{more}" for value, name, more in zip(own, names, differences, strict=True))


def _counts(registry: Registry, chosen: dict[str, str]) -> tuple[float, float, float] | str:
    from pydantic import ValidationError

    from feebcore.model.build import count_architecture
    from feebcore.parts import resolve_part

    try:
        counts = count_architecture(resolve_part("architectures", {"name": "feeb/transformer", **MODEL, **chosen}, registry), VOCAB_SIZE, SEQ_LEN)
    except (ValidationError, ValueError, RuntimeError) as error:  # a part with required options, or for models of other shapes
        return str(error).splitlines()[0]
    return counts.total, counts.flops_per_token, counts.cache_bytes_per_token


def plugins(*, plugin: Plugin = [], json: Json = False) -> int:  # noqa: B006
    """List installed plugins, the number of their parts, and load errors.

    Example:
        feeb plugins
    """
    from feebcore.registry import get_registry

    found = get_registry(plugin_files(plugin)).plugins
    if json:
        print_json([{"distribution": p.distribution, "version": p.version, "origin": p.origin, "parts": p.num_parts, "problem": p.problem} for p in found])
    else:
        rows = [(p.distribution, p.version, p.origin, str(p.num_parts), p.problem or "none") for p in found]
        print_table(("plugin", "version", "origin", "parts", "problem"), rows, prose=("problem",), drop=("origin",))
        hint("feeb parts", "feeb plugin new NAME --kind KIND")
    return 0


COMMANDS = (parts, plugins)
