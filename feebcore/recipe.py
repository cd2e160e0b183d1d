"""A recipe: YAML that names the stages to run and the options of each, checked whole before anything runs.

    name: quickstart
    extends: base.yaml            # another recipe, relative to this one; keys here win
    plugins: [./idea.py]          # single-file plugins, relative to this recipe
    seed: 0
    stages: [download, tokenizer, shard, pretrain]
    pretrain: {max_steps: 800, optimizer: {name: muon, lr: 0.02}}
    variants: {wide: {pretrain.architecture.d_model: 512}}       # a study: the recipe once per variant …
    seeds: [0, 1, 2]                                             # … and per seed
    quick: {pretrain.max_steps: 60}                              # what `feeb run --quick` sets: the same at a small scale
    claims: {wide: {claim: width helps, expect: wide < narrow}} # what its runs are to say (feebcore/claims)

Scalars follow YAML 1.2: `off` is a word, `1e-4` a number. `load` raises RecipeError with file, line and key.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feebcore.claims.claim import Claim, unknown_variants
from feebcore.config import StageConfig
from feebcore.errors import PartClashError, RecipeError, UnknownPartError, did_you_mean
from feebcore.parts import Part, parts_in
from feebcore.registry import Registry, get_registry
from feebcore.specs import Need, StageSpec, load_object

TOP_KEYS = ("name", "description", "extends", "plugins", "seed", "stages", "variants", "seeds", "quick", "claims")


@dataclass(frozen=True)
class StageEntry:
    """One stage of a recipe: its section key (the bare name), its spec and its validated section."""

    key: str
    spec: StageSpec
    section: StageConfig


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. stages keep the order in which they run. data: the resolved YAML as plain values."""

    name: str
    path: Path
    stages: dict[str, StageEntry]
    registry: Registry
    plugins: tuple[Path, ...] = ()
    seed: int = 0
    description: str = ""
    variant: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def needs(self, key: str) -> dict[str, str]:
        """Input name to the stage of this recipe that provides it."""
        found = {}
        for need in self.stages[key].spec.needs:
            provider = provider_of(need, self.stages)
            if provider is not None and provider != key:
                found[need.name] = provider
        return found

    def upstream(self, key: str) -> list[str]:
        """Stages that must exist before `key`, in running order, `key` last."""
        wanted, todo = set(), [key]
        while todo:
            stage = todo.pop()
            if stage not in wanted:
                wanted.add(stage)
                todo += self.needs(stage).values()
        return [s for s in self.stages if s in wanted]

    def resolved(self) -> dict[str, Any]:
        """Everything spelled out, as plain JSON values that load again to the same recipe."""
        sections = {k: entry.section.model_dump(mode="json") for k, entry in self.stages.items()}
        head: dict[str, Any] = {"name": self.name, "seed": self.seed}
        if self.description:
            head["description"] = self.description
        if self.plugins:
            head["plugins"] = [str(p) for p in self.plugins]
        bare = [e.spec.distribution == "feeb" and not self.registry.shared("stages", e.spec.name) for e in self.stages.values()]
        names = [e.spec.name if b else e.spec.full_name for b, e in zip(bare, self.stages.values(), strict=True)]
        return head | {"stages": names} | sections


def provider_of(need: Need, stages: Iterable[str]) -> str | None:
    """The first of the need's stages that is among `stages`."""
    present = set(stages)
    return next((s for s in need.stages if s in present), None)


def read_yaml(path: Path) -> tuple[dict[str, Any], Any]:
    """A YAML 1.2 mapping as plain values, and the parsed document with its line numbers."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path = Path(path)
    if not path.is_file():
        near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise RecipeError(f"no recipe {path}; {did_you_mean(str(path), near)}")
    yaml = YAML(typ="rt", pure=True)
    yaml.version = "1.2"  # type: ignore[assignment]
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.load(io.StringIO(text))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text ({error})") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply for a recipe") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        if "another document" in problem:
            raise RecipeError(f"{path}{line}: a second recipe begins here (`---`); a recipe is a file of its own") from None
        raise RecipeError(f"{path}{line}: not YAML: {problem}") from None
    if document is None:
        raise RecipeError(f"{path}: the recipe is empty; it needs at least `stages:`")
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, not a {type(document).__name__}")
    return _plain(document, path), document


def _plain(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(f"{path}: key {key!r} must be text")
        return {str(k): _plain(v, path) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, path) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise RecipeError(f"{path}: {value!r} is a {type(value).__name__}; use text, numbers, lists and mappings")


class _Lines:
    """Finds the file and line of a key, through `extends`, `--set` and the variant that is being built."""

    def __init__(self) -> None:
        self.documents: list[tuple[Path, Any]] = []
        self.set_keys: set[str] = set()
        self.variant = ""
        self.variant_keys: tuple[str, ...] = ()

    def of(self, keys: Sequence[Any]) -> str:
        dotted = ".".join(map(str, keys))
        if key := _around(dotted, self.variant_keys):
            return f"{self.of(['variants', self.variant, key])} (variant {self.variant!r})"
        if _around(dotted, self.set_keys):
            return f"--set {dotted}"
        for length in range(len(keys), 0, -1):
            for path, document in reversed(self.documents):
                if (line := self._line(document, keys[:length])) is not None:
                    return f"{path}:{line}"
        if any(k.startswith(dotted + ".") for k in self.set_keys):  # a section that only --set made
            return f"--set {dotted}"
        return str(self.documents[-1][0]) if self.documents else "recipe"

    @staticmethod
    def _line(document: Any, keys: Sequence[Any]) -> int | None:
        position: Any = operator.attrgetter("lc")  # ruamel's lines and columns
        node: Any = document
        line: int | None = None
        for key in keys:
            try:
                if isinstance(node, dict) and key in node:
                    line = position(node).key(key)[0] + 1
                elif isinstance(node, list) and isinstance(key, int) and key < len(node):
                    line = position(node).item(key)[0] + 1
                else:
                    return None
                node = node[key]
            except (AttributeError, KeyError, TypeError):
                return None
        return line


def _around(dotted: str, keys: Iterable[str]) -> str:
    """The one of `keys` that is `dotted` or holds it, '' when there is none."""
    return next((k for k in keys if dotted == k or dotted.startswith(k + ".")), "")


def load(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read, merge and check one recipe. overrides: `key=value` texts as given to --set (values are YAML).

    A recipe with variants or seeds is a study; this loads its base. Raises RecipeError.
    """
    data, lines = _merged(Path(path), overrides)
    return _build(Path(path), data, lines, registry)


def load_study(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> list[Recipe]:
    """The recipes of a study: one per variant and seed, in order; a plain recipe is a study of one.

    A member is called after the recipe, its variant and, where there are several, its seed: `rates-low-seed0`.
    """
    data, lines = _merged(Path(path), overrides)
    variants = data.get("variants") or {"": {}}
    if not isinstance(variants, dict) or not all(isinstance(v, dict) or v is None for v in variants.values()):
        raise RecipeError(f"{lines.of(['variants'])}: variants is a mapping of names to {{key: value}}")
    seeds = data.get("seeds") or [data.get("seed", 0)]
    if not isinstance(seeds, list) or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise RecipeError(f"{lines.of(['seeds'])}: seeds is a list of whole numbers")
    found = claims_of(data, lines)
    for name, variant in unknown_variants(found, variants).items():
        raise RecipeError(f"{lines.of(['claims', name, 'expect'])}: claim {name!r} names {variant!r}; {did_you_mean(variant, variants)}")
    for name, claim in found.items():
        if isinstance(stages := data.get("stages"), list) and claim.stage not in [str(stage).rpartition("/")[2] for stage in stages]:
            raise RecipeError(f"{lines.of(['claims', name])}: claim {name!r} is of stage {claim.stage!r}; {did_you_mean(claim.stage, map(str, stages))}")
    if len(set(seeds)) < len(seeds):
        raise RecipeError(f"{lines.of(['seeds'])}: seeds names one twice")
    for variant, changes in variants.items():
        if "seed" in (changes or {}):
            raise RecipeError(f"{lines.of(['variants', variant, 'seed'])}: a variant cannot set the recipe's seed; list `seeds:`, or set a stage's own")
    recipes = []
    for (variant, changes), seed in itertools.product(variants.items(), seeds):
        cell = copy.deepcopy(data) | {"seed": seed}
        lines.variant, lines.variant_keys = variant, tuple(changes or {})
        for key, value in (changes or {}).items():
            set_key(cell, key, value)
        member = _build(Path(path), cell, lines, registry, variant=variant)
        recipes.append(dataclasses.replace(member, name=f"{member.name}-seed{seed}") if len(set(seeds)) > 1 else member)
    return recipes


def claims_of(data: Mapping[str, Any], lines: _Lines | None = None) -> dict[str, Claim]:
    """The claims of a recipe's merged YAML, by name. Raises RecipeError."""
    lines = lines or _Lines()
    raw = data.get("claims") or {}
    if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
        raise RecipeError(f"{lines.of(['claims'])}: claims is a mapping of names to {{claim: ..., expect: ...}}")
    found = {}
    for name, value in raw.items():
        try:
            found[name] = Claim.model_validate(value)
        except ValidationError as error:
            problems = [_sentence(["claims", name, *item["loc"]], dict(item), Claim.model_fields, lines) for item in error.errors(include_url=False)]
            raise RecipeError("\n".join(problems)) from None
    return found


def quick_overrides(path: str | Path) -> list[str]:
    """What `--quick` puts before the texts of --set: the recipe's `quick:` section, and a name of its own. A key with null is
    left as the recipe has it, whatever the recipe that it extends says. Raises RecipeError."""
    data, lines = _merged(Path(path), ())
    quick = data.get("quick")
    if not quick or not isinstance(quick, dict):
        raise RecipeError(f"{lines.of(['quick'])}: the recipe has no `quick:` section, a mapping of keys to the values that make it small")
    name = str(data.get("name") or Path(path).stem)
    return [f"name={name}-quick", *(f"{key}={json.dumps(value)}" for key, value in quick.items() if value is not None)]


def from_resolved(data: Mapping[str, Any], path: Path, registry: Registry | None = None) -> Recipe:
    """The recipe that `Recipe.resolved()` wrote, for running it again from its own folder."""
    return _build(path, dict(data), _Lines(), registry)


def _merged(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], _Lines]:
    lines = _Lines()
    data = _extended(path, lines, ())
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise RecipeError(f"--set {text!r}: write key=value, as in --set pretrain.max_steps=100")
        set_key(data, key.strip(), parse_scalar(value))
        lines.set_keys.add(key.strip())
    return data, lines


def _extended(path: Path, lines: _Lines, chain: tuple[Path, ...]) -> dict[str, Any]:
    path = path.resolve() if chain else path
    if path.resolve() in chain:
        raise RecipeError(f"{path}: extends itself through {' -> '.join(map(str, chain))}")
    data, document = read_yaml(path)
    base: dict[str, Any] = {}
    if parent := data.pop("extends", None):
        if not isinstance(parent, str):
            raise RecipeError(f"{path}: extends is the path of one recipe")
        base = _extended(path.parent / parent, lines, (*chain, path.resolve()))
    if plugins := data.get("plugins"):
        if not isinstance(plugins, list) or not all(isinstance(p, str) for p in plugins):
            raise RecipeError(f"{path}: plugins is a list of files, as in [./idea.py]")
        inherited = base.pop("plugins", [])
        data["plugins"] = inherited + [str((path.parent / p).resolve()) for p in plugins]
    lines.documents.append((path, document))
    return merge(base, data)


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over `base`: mappings merge, but a part that changes its name starts from its defaults."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def set_key(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set `a.b.c` in place; a part written as a bare name becomes `{name: …}` when an option of it is set."""
    *parents, last = dotted.split(".")
    node: Any = data
    for i, key in enumerate(parents):
        if isinstance(node, list):
            node = _item(node, key, dotted)
            continue
        child = node.get(key)
        if child is None:
            child = {}
        elif isinstance(child, str):
            child = {"name": child}
        elif not isinstance(child, dict | list):
            raise RecipeError(f"{dotted}: {'.'.join(parents[: i + 1])} is {child!r}, which has no keys")
        node[key] = child
        node = child
    if isinstance(node, list):
        index = node.index(_item(node, last, dotted))
        node[index] = value
    elif isinstance(node.get(last), dict) and isinstance(value, str):
        node[last] = {"name": value} if node[last].get("name") != value else node[last]
    elif last == "name" and parents and node.get("name") not in (None, value):
        node.clear()  # another part: the options were those of the one before
        node["name"] = value
    else:
        node[last] = value


def _item(node: list[Any], key: str, dotted: str) -> Any:
    if not key.isdigit() or int(key) >= len(node):
        raise RecipeError(f"{dotted}: {key!r} is no position of a list of {len(node)}")
    item = node[int(key)]
    if isinstance(item, str):
        item = node[int(key)] = {"name": item}
    return item


def parse_scalar(text: str) -> Any:
    """One YAML 1.2 value from the command line."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        yaml = YAML(typ="rt", pure=True)
        yaml.version = "1.2"  # type: ignore[assignment]
        return _plain(yaml.load(text), Path("--set")) if text.strip() else ""
    except YAMLError as error:
        raise RecipeError(f"--set: {text!r} is not a YAML value ({getattr(error, 'problem', error)})") from None


def _build(path: Path, data: dict[str, Any], lines: _Lines, registry: Registry | None, variant: str = "") -> Recipe:
    plugins = tuple(Path(p) for p in data.get("plugins") or ())
    registry = registry or get_registry(plugins)
    names = data.get("stages")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise RecipeError(f"{lines.of(['stages'])}: stages must be a list of stage names, as in [download, tokenizer, shard, pretrain]")
    specs: dict[str, StageSpec] = {}
    for i, name in enumerate(names):
        try:
            spec = registry.resolve("stages", name)
        except (UnknownPartError, PartClashError) as error:
            raise RecipeError(f"{lines.of(['stages', i])}: {error}") from None
        if spec.name in specs:
            raise RecipeError(f"{lines.of(['stages', i])}: stage {spec.name!r} is listed twice")
        assert isinstance(spec, StageSpec)
        specs[spec.name] = spec
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RecipeError(f"{lines.of(['seed'])}: seed must be a whole number of at least 0, not {seed!r}")
    _refuse_unknown_sections(data, specs, registry, lines)
    problems: list[str] = []
    stages: dict[str, StageEntry] = {}
    for key, spec in specs.items():
        raw = data.get(key) or {}
        if not isinstance(raw, dict):
            raise RecipeError(f"{lines.of([key])}: section {key!r} is a mapping of options, not {raw!r}")
        if "seed" in spec.config.model_fields and "seed" not in raw:
            raw = raw | {"seed": seed}
        try:
            section = spec.config.model_validate(raw, context={"registry": registry, "recipe_folder": path.parent})
        except ValidationError as error:
            problems += _explain(error, spec.config, key, lines)
            continue
        stages[key] = StageEntry(key, spec, section)
    if problems:
        raise RecipeError("\n".join(problems))
    name = str(data.get("name") or path.stem) + (f"-{variant}" if variant else "")
    if not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise RecipeError(
            f"{lines.of(['variants', variant] if variant else ['name'])}: name {name!r} becomes a folder name; use letters, digits, '-', '_' and '.'"
        )
    recipe = Recipe(name, path, stages, registry, plugins, seed, str(data.get("description") or ""), variant, data)
    _check_needs(recipe, lines)
    for key, entry in stages.items():
        if entry.spec.check:
            found = load_object(entry.spec.check, entry.spec.full_name)(entry.section, recipe)
            problems += [f"{lines.of([key, *text.partition(':')[0].split('.')])}: {key}.{text}" for text in found]
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def _refuse_unknown_sections(data: dict[str, Any], specs: Mapping[str, StageSpec], registry: Registry, lines: _Lines) -> None:
    for key in data:
        if key in TOP_KEYS or key in specs:
            continue
        if any(spec.name == key for _, spec in registry.parts("stages")):
            continue  # the section of a stage that this recipe does not run: an inherited one
        raise RecipeError(f"{lines.of([key])}: unknown key {key!r}; {did_you_mean(key, [*TOP_KEYS, *specs])}")


def _check_needs(recipe: Recipe, lines: _Lines) -> None:
    order = list(recipe.stages)
    for key, entry in recipe.stages.items():
        for need in entry.spec.needs:
            provider = provider_of(need, recipe.stages)
            if provider is None and not need.optional:
                wanted = " or ".join(repr(s) for s in need.stages)
                raise RecipeError(f"{lines.of(['stages'])}: stage {key!r} needs stage {wanted}; add it to `stages:` before {key!r}")
            if provider is not None and order.index(provider) > order.index(key):
                raise RecipeError(f"{lines.of(['stages'])}: stage {key!r} needs {provider!r}, which is listed after it")


def _explain(error: ValidationError, model: type, key: str, lines: _Lines) -> list[str]:
    """One sentence per error: file:line, dotted key, what is wrong, what to do."""
    messages = []
    for item in error.errors(include_url=False):
        location = [key, *item["loc"]]
        if item["type"] == "part_options":
            known = item["ctx"]["known"]
            for detail in item["ctx"]["details"]:
                messages.append(_sentence([*location, *detail["loc"]], detail, known, lines))
            continue
        messages.append(_sentence(location, dict(item), _known_keys(model, item["loc"][:-1]), lines))
    return messages


def _sentence(location: Sequence[Any], item: Mapping[str, Any], known: Iterable[str], lines: _Lines) -> str:
    dotted = ".".join(str(k) for k in location)
    where = lines.of(location)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}; {did_you_mean(str(location[-1]), known)}"
    if item["type"] == "missing":
        return f"{where}: key {dotted!r} is missing"
    if item["type"] == "part_options":
        return "\n".join(_sentence([*location, *d["loc"]], d, item["ctx"]["known"], lines) for d in item["ctx"]["details"])
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    if message.startswith("Input should be") and isinstance(given, str | int | float):
        message = f"{message.partition(', unable to parse')[0]}, not {given!r}"
    return f"{where}: {dotted}: {message}"


def _known_keys(model: Any, location: Sequence[Any]) -> list[str]:
    for step in location:
        fields = getattr(model, "model_fields", {})
        model = getattr(fields.get(step), "annotation", None)
        while model is not None and not hasattr(model, "model_fields"):
            arguments = [a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields") or hasattr(a, "__args__")]
            model = arguments[0] if arguments else None
    return sorted(getattr(model, "model_fields", {}))


def plugins_used(recipe: Recipe, key: str) -> list[Part]:
    """Every part that a stage's section chooses."""
    return parts_in(recipe.stages[key].section)


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(json.loads(json.dumps(recipe.resolved())), stream)
    return stream.getvalue()
