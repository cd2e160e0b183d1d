"""A recipe: YAML that names the stages to run and the options of each, checked whole before anything runs.

    name: quickstart
    extends: base.yaml            # another recipe, relative to this one; keys here win
    plugins: [./idea.py]          # single-file plugins, relative to this recipe
    seed: 0
    inputs: {shard: mycorpus}     # a finished artifact in the place of a stage: a name, stage/name, stage/name-fingerprint, a folder
    stages: [pretrain, evaluate]
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
import functools
import io
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feebcore.claim import Claim, unknown_variants
from feebcore.config import StageConfig
from feebcore.errors import PartClashError, RecipeError, UnknownPartError, did_you_mean
from feebcore.files import expand_user
from feebcore.hardware import auto_precision
from feebcore.parts import Part, PartKey, with_part, with_precision
from feebcore.recipe_yaml import Lines, read_merged, set_key
from feebcore.registry import Registry, get_registry
from feebcore.specs import StageSpec, load_object

LONGEST_NAME = 100
TOP_KEYS = ("name", "description", "extends", "plugins", "seed", "inputs", "stages", "variants", "seeds", "quick", "claims")


@dataclass(frozen=True)
class StageEntry:
    """One stage of a recipe: its section key (the bare name), its spec and its validated section."""

    key: str
    spec: StageSpec
    section: StageConfig


@dataclass(frozen=True)
class NamedInput:
    """An artifact that takes the place of building a stage. reference: a name, `stage/name`, `stage/name-fingerprint` or a folder.
    spec: of the stage. where: file, line and key, or the option of the command, for messages. feebcore.run.inputs finds it."""

    stage: str
    reference: str
    spec: StageSpec
    where: str


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. stages keep the order in which they run. inputs: stages whose artifact is named, not built.
    data: the resolved YAML as plain values. changes: what it sets beyond the recipe that it extends, by dotted key: its own keys, those
    of its variant and of --set. overrides: the texts of --set."""

    name: str
    path: Path
    stages: dict[str, StageEntry]
    registry: Registry
    plugins: tuple[Path, ...] = ()
    seed: int = 0
    description: str = ""
    variant: str = ""
    inputs: dict[str, NamedInput] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()

    def needs(self, key: str) -> dict[str, str]:
        """Input name to the stage (of this recipe, or a named input) that provides it: the nearest before `key` that makes the kind."""
        before = self.before(key)
        providers: dict[str, str] = {}
        for need in self.stages[key].spec.needs:
            makers = [stage for stage, makes in before.items() if need.met_by(makes)]
            providers |= {stage: stage for stage in makers} if need.many else {need.name: makers[-1]} if makers else {}
        return providers

    def before(self, key: str) -> dict[str, tuple[str, ...]]:
        """What may be an input of `key`: named inputs, then the stages listed before it, with the kinds that they make."""
        earlier = itertools.takewhile(lambda stage: stage != key, self.stages)
        return {stage: named.spec.makes for stage, named in self.inputs.items()} | {stage: self.stages[stage].spec.makes for stage in earlier}

    def used_inputs(self) -> list[str]:
        """The named inputs that a stage of this recipe needs."""
        needed = {provider for key in self.stages for provider in self.needs(key).values()}
        return [stage for stage in self.inputs if stage in needed]

    def provider(self, section: StageConfig, kind: str) -> StageEntry | None:
        """The stage that gives `kind` to the stage with this section; None where none does or it is a named input."""
        key = self.key_of(section)
        makers = [stage for stage, makes in self.before(key).items() if kind in makes]
        return self.stages.get(makers[-1]) if makers else None

    def key_of(self, section: StageConfig) -> str:
        """The stage that a section belongs to."""
        return next(key for key, entry in self.stages.items() if entry.section is section)

    def upstream(self, key: str) -> list[str]:
        """Stages that must be built before `key`, in running order, `key` last."""
        needed, todo = set(), [key]
        while todo:
            stage = todo.pop()
            if stage in self.stages and stage not in needed:
                needed.add(stage)
                todo += self.needs(stage).values()
        return [s for s in self.stages if s in needed]

    def resolved(self) -> dict[str, Any]:
        """Everything spelled out, as plain JSON values that load again to the same recipe."""
        sections = {k: entry.section.model_dump(mode="json") for k, entry in self.stages.items()}
        head: dict[str, Any] = {"name": self.name, "seed": self.seed}
        if self.description:
            head["description"] = self.description
        if self.plugins:
            head["plugins"] = [str(p) for p in self.plugins]
        if used := self.used_inputs():
            head["inputs"] = {stage: self.inputs[stage].reference for stage in used}
        bare = [e.spec.distribution == "feeb" and not self.registry.shared("stages", e.spec.name) for e in self.stages.values()]
        names = [e.spec.name if b else e.spec.full_name for b, e in zip(bare, self.stages.values(), strict=True)]
        return head | {"stages": names} | sections


def load(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read, merge and check one recipe. overrides: `key=value` texts as given to --set (values are YAML).

    A recipe with variants or seeds is a study; this loads its base. Raises RecipeError.
    """
    data, lines = read_merged(Path(path), overrides)
    return _build(Path(path), data, lines, registry)


def load_study(path: str | Path, overrides: Sequence[str] = (), registry: Registry | None = None) -> list[Recipe]:
    """The recipes of a study: one per variant and seed, in order; a plain recipe is a study of one.

    A member is called after the recipe, its variant and, where there are several, its seed: `rates-low-seed0`.
    """
    data, lines = read_merged(Path(path), overrides)
    variants = data.get("variants") or {"": {}}
    if not isinstance(variants, dict) or not all(isinstance(v, dict) or v is None for v in variants.values()):
        raise RecipeError(f"{lines.of(['variants'])}: variants is a mapping of names to {{key: value}}")
    if "seeds" not in data or data["seeds"] is None:
        _check_seed(data, lines)
    seeds = data["seeds"] if data.get("seeds") is not None else [data.get("seed", 0)]
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) and not isinstance(s, bool) for s in seeds):
        raise RecipeError(f"{lines.of(['seeds'])}: seeds is a list of whole numbers")
    if data.get("seeds") and ("seed" in lines.set_keys or any({"seed", "seeds"} <= document.keys() for _, document in lines.documents)):
        raise RecipeError(f"{lines.of(['seed'])}: seed changes nothing where `seeds:` lists the seed of every run; remove one of the two")
    claims = claims_of(data, lines)
    for name, variant in unknown_variants(claims, variants).items():
        raise RecipeError(f"{lines.of(['claims', name, 'expect'])}: claim {name!r} names {variant!r}; {did_you_mean(variant, variants)}")
    for name, claim in claims.items():
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
        if len(set(seeds)) > 1:
            member = dataclasses.replace(member, name=f"{member.name}-seed{seed}", changes=member.changes | {"seed": seed})
        recipes.append(member)
    return recipes


def claims_of(data: Mapping[str, Any], lines: Lines | None = None) -> dict[str, Claim]:
    """The claims of a recipe's merged YAML, by name. Raises RecipeError."""
    lines = lines or Lines()
    raw = data.get("claims") or {}
    if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
        raise RecipeError(f"{lines.of(['claims'])}: claims is a mapping of names to {{claim: ..., expect: ...}}")
    claims = {}
    for name, value in raw.items():
        try:
            claims[name] = Claim.model_validate(value)
        except ValidationError as error:
            problems = [_sentence(["claims", name, *item["loc"]], dict(item), Claim.model_fields, lines) for item in error.errors(include_url=False)]
            raise RecipeError("\n".join(problems)) from None
    return claims


def quick_overrides(path: str | Path) -> list[str]:
    """What `--quick` puts before the texts of --set: the recipe's `quick:` section, and a name of its own. A key with null is
    left as the recipe has it, whatever the recipe that it extends says. Raises RecipeError."""
    data, lines = read_merged(Path(path), ())
    if not (quick := data.get("quick")):
        raise RecipeError(f"{lines.of(['quick'])}: the recipe has no `quick:` section, a mapping of keys to the values that make it small")
    name = str(data.get("name") or Path(path).stem)
    return [f"name={name}-quick", *(f"{key}={json.dumps(value)}" for key, value in quick.items() if value is not None)]


def from_resolved(data: Mapping[str, Any], path: Path, registry: Registry | None = None, changes: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe that `Recipe.resolved()` wrote, for running it again from its own folder. changes: of the recipe that was resolved."""
    return dataclasses.replace(_build(path, dict(data), Lines(), registry), changes=dict(changes or {}))


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a list is one value."""
    pairs: dict[str, Any] = {}
    for key, item in value.items():
        pairs |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) and item else {f"{prefix}{key}": item}
    return pairs


def section_changes(key: str, old: StageConfig, new: StageConfig) -> dict[str, Any]:
    """What `new` sets otherwise than `old`, by dotted key: for a recipe that is another with one section replaced."""
    before, after = (flat({key: section.model_dump(mode="json")}) for section in (old, new))
    return {name: value for name, value in after.items() if name not in before or before[name] != value}


def _changes(data: Mapping[str, Any], lines: Lines) -> dict[str, Any]:
    own = flat(lines.documents[-1][1]) if len(lines.documents) > 1 else {}  # of a recipe that extends none, every key would be a change
    changes = {}
    for key in (*own, *lines.variant_keys, *sorted(lines.set_keys)):
        node: Any = data
        for step in key.split("."):
            node = node.get(step) if isinstance(node, Mapping) else node[int(step)] if isinstance(node, list) and step.isdigit() else None
        if key.partition(".")[0] not in TOP_KEYS or key == "seed":
            changes[key] = json.loads(json.dumps(node))
    return changes


def _build(path: Path, data: dict[str, Any], lines: Lines, registry: Registry | None, variant: str = "") -> Recipe:
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
    inputs = _named_inputs(data, path, registry, lines)
    listed = tuple(specs)
    specs = {key: spec for key, spec in specs.items() if key not in inputs}
    if not specs:
        raise RecipeError(f"{lines.of(['stages'])}: every stage of the recipe is a named input, so nothing is left to run")
    seed = _check_seed(data, lines)
    _refuse_unused_sections(data, specs, inputs, registry, lines)
    problems: list[str] = []
    stages: dict[str, StageEntry] = {}
    for key, spec in specs.items():
        raw = {} if data.get(key) is None else data[key]
        if not isinstance(raw, dict):
            raise RecipeError(f"{lines.of([key])}: section {key!r} is a mapping of options, not {raw!r}")
        if "seed" in spec.config.model_fields and "seed" not in raw:
            raw = raw | {"seed": seed}
        try:
            section = spec.config.model_validate(raw, context={"registry": registry, "recipe_folder": path.parent})
        except ValidationError as error:
            problems += _explain(error, spec.config, key, lines)
            continue
        stages[key] = StageEntry(key, spec, with_precision(section, functools.partial(auto_precision, getattr(section, "device", "auto"))))
    if problems:
        raise RecipeError("\n".join(_cause_first(problems, registry)))
    stages = _with_own_task(stages)
    name = str(data.get("name") or path.stem) + (f"-{variant}" if variant else "")
    if problem := unusable_name(name):
        raise RecipeError(f"{lines.of(['variants', variant] if variant else ['name'])}: {problem}")
    recipe = Recipe(
        name, path, stages, registry, plugins, seed, str(data.get("description") or ""), variant, inputs, data, _changes(data, lines), tuple(lines.overrides)
    )
    _check_needs(recipe, lines)
    for key, named in inputs.items():
        if key not in recipe.used_inputs() and key not in listed:
            raise RecipeError(f"{named.where}: no stage of this recipe needs an artifact of stage {key!r}; it runs {', '.join(stages)}")
    for key, entry in stages.items():
        if entry.spec.check:
            texts = load_object(entry.spec.check, entry.spec.full_name)(entry.section, recipe)
            for text in texts:
                option, _, problem = text.partition(": ")
                problems.append(f"{_with_key(lines.of([key, *option.split('.')]), f'{key}.{option}')}: {problem}")
    if problems:
        raise RecipeError("\n".join(problems))
    return recipe


def unusable_name(name: str) -> str:
    """What is wrong with the name of a run, which is a folder and an argument of commands; '' if nothing."""
    if len(name) > LONGEST_NAME:
        return f"name {name[:20]!r}… has {len(name)} characters; use at most {LONGEST_NAME}"
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name[0] in ".-":
        return f"name {name!r} becomes a folder name; use letters, digits, '-', '_' and '.', and begin with a letter, digit or '_'"
    return ""


def _check_seed(data: Mapping[str, Any], lines: Lines) -> int:
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RecipeError(f"{lines.of(['seed'])}: seed must be a whole number of at least 0, not {seed!r}")
    return seed


def _with_own_task(stages: dict[str, StageEntry]) -> dict[str, StageEntry]:
    """The stages, with the recipe's own task in every key that left its task out: the one named nearest before, else the next one after."""
    keys = list(stages)
    named = {key: task for key, entry in stages.items() if (task := _named_task(entry.section)) is not None}
    result = {}
    for i, (key, entry) in enumerate(stages.items()):
        before, after = [k for k in keys[:i] if k in named], [k for k in keys[i:] if k in named]
        nearest = before[-1:] or after[:1]
        result[key] = dataclasses.replace(entry, section=with_part(entry.section, "tasks", named[nearest[0]])) if nearest else entry
    return result


def _named_task(section: StageConfig) -> Part | None:
    fields = type(section).model_fields
    return next((getattr(section, key) for key in fields if key in section.model_fields_set and PartKey("tasks") in fields[key].metadata), None)


def _refuse_unused_sections(data: dict[str, Any], stages: Iterable[str], inputs: Iterable[str], registry: Registry, lines: Lines) -> None:
    """Raises RecipeError for what nothing reads, but for sections that were inherited together with other stages."""
    offered = {spec.name for _, spec in registry.parts("stages")}
    for key in data:
        if key in TOP_KEYS or key in stages:
            continue
        if key not in offered:
            raise RecipeError(f"{lines.of([key])}: unknown key {key!r}; {did_you_mean(key, [*TOP_KEYS, *stages, *inputs])}")
        where = lines.chosen(key, data)
        if key in inputs and where.startswith("--set"):
            raise RecipeError(f"{where}: stage {key!r} is not built, as a finished artifact takes its place, so its options change nothing")
        if key not in inputs and where:
            raise RecipeError(f"{where}: this recipe does not run stage {key!r}, whose options these are; add it to `stages:` or remove them")


def _cause_first(problems: list[str], registry: Registry) -> list[str]:
    """The problems with what they share, plugins that did not load, said once before them."""
    cause = registry.not_loaded()
    without = [problem.replace(cause, "") for problem in problems] if cause else problems
    return problems if without == problems else [cause.rstrip("; "), *without]


def _named_inputs(data: dict[str, Any], path: Path, registry: Registry, lines: Lines) -> dict[str, NamedInput]:
    raw = data.get("inputs") or {}
    if isinstance(raw, dict):
        raw = {stage: reference for stage, reference in raw.items() if reference is not None}  # null: not the one that it extends names
    if not isinstance(raw, dict) or not all(isinstance(value, str) and value for value in raw.values()):
        raise RecipeError(f"{lines.of(['inputs'])}: inputs is a mapping of stages to artifacts, as in {{pretrain: smol}}; quote a name that reads as a number")
    inputs = {}
    for stage, reference in raw.items():
        given = f"inputs.{stage}" in lines.set_keys
        where = f"--input {stage}={reference}" if given else f"{lines.of(['inputs', stage])}: inputs.{stage}"
        try:
            spec = registry.resolve("stages", stage)
        except (UnknownPartError, PartClashError) as error:
            raise RecipeError(f"{where}: {error}") from None
        assert isinstance(spec, StageSpec)
        if reference.startswith(("/", "./", "../", "~")):  # a folder, relative to the recipe
            reference = str((path.parent / expand_user(reference)).absolute())
        inputs[spec.name] = NamedInput(spec.name, reference, spec, where)
    return inputs


def _check_needs(recipe: Recipe, lines: Lines) -> None:
    for key, entry in recipe.stages.items():
        before = recipe.before(key)
        names = [n for need in entry.spec.needs for n in ([s for s, makes in before.items() if need.met_by(makes)] if need.many else [need.name])]
        if twice := next((n for n in names if names.count(n) > 1), ""):
            raise RecipeError(f"{lines.of(['stages'])}: stage {key!r} has two inputs called {twice!r}; rename the stage of that name")
        for need in entry.spec.needs:
            if need.optional or any(need.met_by(makes) for makes in before.values()):
                continue
            kind = need.kind or need.name
            specs = [spec for _, spec in recipe.registry.parts("stages") if isinstance(spec, StageSpec)]
            makers = [spec.name for spec in specs if kind in spec.makes and not any((n.kind or n.name) == kind for n in spec.needs)]
            if later := next((stage for stage in recipe.stages if stage in makers), ""):
                raise RecipeError(f"{lines.of(['stages'])}: stage {key!r} needs {kind}, and {later!r}, which makes it, is listed after it")
            known = f"add {' or '.join(map(repr, makers))} to `stages:` before it, or name" if makers else "no stage that is installed makes it; name"
            raise RecipeError(f"{lines.of(['stages'])}: stage {key!r} needs {kind}; {known} a finished artifact under `inputs:`")


def _explain(error: ValidationError, model: type, key: str, lines: Lines) -> list[str]:
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


def _sentence(location: Sequence[Any], item: Mapping[str, Any], known: Iterable[str], lines: Lines) -> str:
    dotted = ".".join(str(k) for k in location)
    where = lines.of(location)
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted!r}; {did_you_mean(str(location[-1]), known)}"
    if item["type"] == "missing":
        return f"{where}: key {dotted!r} is missing"
    if item["type"] == "part_options":
        return "\n".join(_sentence([*location, *d["loc"]], d, item["ctx"]["known"], lines) for d in item["ctx"]["details"])
    message = item["msg"].removeprefix("Value error, ")
    value = item.get("input")
    if message.startswith("Input should be") and isinstance(value, str | int | float):
        message = f"{message.partition(', unable to parse')[0]}, not {value!r}" + (f"; write [{value}]" if item["type"] == "list_type" else "")
    return f"{_with_key(where, dotted)}: {message}"


def _with_key(where: str, dotted: str) -> str:
    """The place and the key, which `--set KEY` names already."""
    return where if where == f"--set {dotted}" else f"{where}: {dotted}"


def _known_keys(model: Any, location: Sequence[Any]) -> list[str]:
    for step in location:
        fields = getattr(model, "model_fields", {})
        model = getattr(fields.get(step), "annotation", None)
        while model is not None and not hasattr(model, "model_fields"):
            arguments = [a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields") or hasattr(a, "__args__")]
            model = arguments[0] if arguments else None
    return sorted(getattr(model, "model_fields", {}))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 120
    stream = io.StringIO()
    yaml.dump(json.loads(json.dumps(recipe.resolved())), stream)
    return stream.getvalue()
