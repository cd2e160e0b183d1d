"""What a comparison trains: candidates that share their data, seeds in pairs, and the steps that make their budgets equal. No torch."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from feebcore.artifacts import Artifact
from feebcore.config import PartConfig, identity_of
from feebcore.errors import RecipeError, plural
from feebcore.files import digest_of
from feebcore.parts import Part, identity_of_spec
from feebcore.recipe import Recipe, StageEntry, load, load_study, quick_overrides, section_changes, unusable_name
from feebcore.run.plan import identity, stages_for
from feebcore.train.checks import check_training
from feebcore.train.pretrain_config import PretrainConfig
from feebcore.train.scaled import scaled, scaled_lrs

STAGE = "pretrain"
REVISION = 3
"""Of what a comparison means; a higher one makes finished comparisons be judged anew."""

Budget = Literal["tokens", "flops", "time"]
TuneLR = Literal["best", "report", "off"]
Role = Literal["lr", "run", "curve"]


class Settings(PartConfig):
    """What to compare by."""

    seeds: int = Field(5, ge=2, description="pairs of runs: each seed trains every candidate once")
    budget: Budget = Field("tokens", description="what is equal: training tokens, counted training FLOPs, or measured seconds of training")
    effect: float = Field(0.01, gt=0, description="smallest difference in bits per byte that matters")
    tune_lr: TuneLR = Field("best", description="learning-rate search per recipe: use the best (best), only report it (report), or skip the search (off)")
    lr_factors: tuple[float, ...] = Field((0.5, 1.0, 2.0), description="multiples of the recipe's learning rates to try first")
    lr_search_fraction: float = Field(0.25, gt=0, le=1, description="length of a run of the learning-rate search, as a fraction of the recipe's steps")
    curve: tuple[float, ...] = Field((0.5, 2.0), description="budgets of the baseline's own curve, as factors of its budget; empty: no curve")
    name: str = Field("", description="name of the comparison; empty: the names of the candidates")

    @field_validator("lr_factors")
    @classmethod
    def _has_own_lr(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if 1.0 not in value or min(value) <= 0 or len(set(value)) != len(value):
            raise ValueError(f"{list(value)}: factors are above 0, different, and 1 is among them")
        return tuple(sorted(value))

    @field_validator("curve")
    @classmethod
    def _positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(factor <= 0 or factor == 1 for factor in value) or len(set(value)) != len(value):
            raise ValueError(f"{list(value)}: factors are above 0, different, and not 1, which is the comparison itself")
        return tuple(sorted(value))

    @field_validator("name")
    @classmethod
    def _folder(cls, value: str) -> str:
        if value and (problem := unusable_name(value)):
            raise ValueError(problem)
        return value


@dataclass(frozen=True)
class Candidate:
    """One of the recipes. seeds: of its runs, the i-th paired with the i-th of every other candidate. same_as: the earlier candidate
    that is the very same recipe, whose seeds this one may not share; '' for none."""

    name: str
    recipe: Recipe
    seeds: tuple[int, ...]
    same_as: str = ""

    @property
    def section(self) -> PretrainConfig:
        section = self.recipe.stages[STAGE].section
        assert isinstance(section, PretrainConfig)
        return section


@dataclass(frozen=True)
class Run:
    """One training run of a comparison. factor: multiple of the recipe's learning rates. share: fraction of the recipe's steps."""

    name: str
    recipe: str
    role: Role
    seed: int
    max_steps: int
    factor: float = 1.0
    share: float = 1.0

    def overrides(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}


def load_candidates(paths: Sequence[str], settings: Settings, overrides: Sequence[str], quick: bool) -> tuple[Settings, list[Recipe], str]:
    """Settings with a name, the recipes or their variants, and the command that asks for this, but for how it is run.

    The seeds that a recipe names are the comparison's to choose. quick: with the recipes' `quick:` sections.
    """
    recipes = load_recipes(paths, overrides, quick)
    command = _command(paths, settings, overrides, quick)
    if len(paths) == 1 and not settings.name:
        settings = settings.model_copy(update={"name": study_name(recipes[0])})
    return settings, recipes, command


def study_name(recipe: Recipe) -> str:
    """The name of the recipe that has these variants, as a folder's."""
    return re.sub(r"[^\w.-]+", "-", str(recipe.data.get("name") or recipe.path.stem)).lstrip(".")


def load_recipes(paths: Sequence[str], overrides: Sequence[str], quick: bool) -> list[Recipe]:
    """The recipes, or their variants; the seeds that a recipe names are not those of its runs here."""
    recipes: list[Recipe] = []
    for path in paths:
        texts = [*quick_overrides(path), *overrides] if quick else list(overrides)
        variants = {recipe.variant: recipe for recipe in reversed(load_study(path, texts))}
        if list(variants) == [""]:
            recipes.append(load(path, texts))
        else:
            alone = len(paths) == 1  # then the variant says all
            recipes += [dataclasses.replace(r, name=r.variant if alone else r.name.removesuffix(f"-seed{r.seed}")) for r in reversed(variants.values())]
    return recipes


def _command(paths: Sequence[str], settings: Settings, overrides: Sequence[str], quick: bool) -> str:
    defaults = Settings()
    words = ["feeb", "compare", *paths, *(["--quick"] if quick else [])]
    for option in ("seeds", "budget", "effect", "name"):
        if (value := getattr(settings, option)) != getattr(defaults, option):
            words += [f"--{option}", str(value)]
    words += {"best": [], "report": ["--keep-lr"], "off": ["--no-tune-lr"]}[settings.tune_lr]
    if settings.curve != defaults.curve:
        words += ["--curve", ",".join(f"{factor:g}" for factor in settings.curve) or "none"]
    return shlex.join([*words, *(word for text in overrides for word in ("--set", text))])


def candidates_of(recipes: Sequence[Recipe], settings: Settings) -> list[Candidate]:
    """The recipes as candidates, the baseline first. Raises RecipeError where they cannot be compared.

    A recipe that is there twice is compared with itself under other seeds: what differs then is chance alone.
    """
    if len(recipes) < 2:
        raise RecipeError("a comparison needs at least two recipes, the baseline first, or one recipe with `variants:`")
    for recipe in recipes:
        if STAGE not in recipe.stages:
            raise RecipeError(f"{recipe.path}: the recipe runs no stage {STAGE!r}, which is what is compared")
        if not isinstance(recipe.stages[STAGE].section, PretrainConfig):
            raise RecipeError(f"{recipe.path}: stage {STAGE!r} is not the built-in one, so its runs cannot be planned here")
        if key := next((key for key in ("stop_at_loss", "stop_when_flat") if getattr(recipe.stages[STAGE].section, key)), None):
            raise RecipeError(f"{recipe.path}: {STAGE}.{key} ends runs at different steps, and a comparison trains them to a matched budget; remove it")
    check_same_data(recipes)
    first = recipes[0].stages[STAGE].section
    assert isinstance(first, PretrainConfig)
    known: dict[str, list[str]] = {}
    candidates = []
    for recipe, name in zip(recipes, names_of(recipes), strict=True):
        alike = known.setdefault(digest_of(_own_identity(recipe)), [])
        begin = first.seed + len(alike) * settings.seeds
        candidates.append(Candidate(name, recipe, tuple(range(begin, begin + settings.seeds)), alike[0] if alike else ""))
        alike.append(name)
    return candidates


def names_of(recipes: Sequence[Recipe]) -> list[str]:
    """The recipes' names; of those that share one, the files' names, and then numbers."""
    names = [recipe.name for recipe in recipes]
    names = [recipe.path.stem if names.count(name) > 1 and not recipe.variant else name for recipe, name in zip(recipes, names, strict=True)]
    names = [re.sub(r"[^\w.-]+", "-", name).lstrip(".") or "recipe" for name in names]  # they become folder names
    return [name if name not in names[:i] else f"{name}-{i + 1}" for i, name in enumerate(names)]


def _own_identity(recipe: Recipe) -> dict[str, Any]:
    """What makes the recipe's training run what it is, but for its seed."""
    section = recipe.stages[STAGE].section
    return identity_of(section.model_copy(update={"seed": 0}))


def check_same_data(recipes: Sequence[Recipe], trained: str = STAGE) -> None:
    """Raises RecipeError naming the first key in which a recipe's stages before the one that is compared differ from the baseline's."""
    base = recipes[0]
    before = [stage for stage in stages_for(base, [trained]) if stage != trained]
    for other in recipes[1:]:
        ours, its = ({stage: named.reference for stage, named in recipe.inputs.items()} for recipe in (base, other))
        if ours != its:
            raise RecipeError(
                f"inputs: {short(ours)} in {base.path} and {short(its)} in {other.path}; recipes are compared on the same data, so make them equal"
            )
        theirs = [stage for stage in stages_for(other, [trained]) if stage != trained]
        if theirs != before:
            raise RecipeError(
                f"{other.path}: before {trained} it runs {', '.join(theirs)}, and {base.path} runs {', '.join(before)}; recipes are compared on the same data"
            )
        for stage in before:
            own, others = ({stage: identity_of_spec(r.stages[stage].spec) | {"options": identity_of(r.stages[stage].section)}} for r in (base, other))
            if (difference := first_difference(own, others)) is not None:
                key, one, two = difference
                raise RecipeError(
                    f"{key}: {short(one)} in {base.path} and {short(two)} in {other.path}; recipes are compared on the same data, so make them equal"
                )


def first_difference(one: Any, other: Any, prefix: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key, as a recipe writes it, in which two identities differ, and both values; None for equal ones."""
    if one == other:
        return None
    if isinstance(one, dict) and isinstance(other, dict):
        if "part" in one and "part" in other and one["part"] != other["part"]:
            return prefix, one["part"], other["part"]
        for key in dict.fromkeys([*one, *other]):
            inner = prefix if key == "options" and "part" in one else f"{prefix}.{key}" if prefix else key
            if (difference := first_difference(one.get(key), other.get(key), inner)) is not None:
                return difference
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if (difference := first_difference(a, b, f"{prefix}.{i}")) is not None:
                return difference
    return prefix, one, other


def short(value: Any) -> str:
    text = "the default" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


ORDER_KEYS = ("packing", "data_order", "batch_size", "seq_len")
"""Of a section: what decides, with the seed, which tokens come when."""


def order_differences(candidates: Sequence[Candidate]) -> list[str]:
    """A sentence for each candidate that, under the same seed, does not read the same tokens in the same order as the baseline."""
    base, notes = candidates[0].section, []
    for candidate in candidates[1:]:
        keys = [key for key in ORDER_KEYS if getattr(base, key) != getattr(candidate.section, key)]
        if candidate.same_as:
            notes.append(f"{candidate.name} is the same recipe as {candidate.same_as}: its runs have other seeds, so only chance differs.")
        elif keys:
            notes.append(
                f"{candidate.name} reads its data in another order than {candidates[0].name}, as {', '.join(keys)} differ: pairs share their seeds, not their batches."
            )
    return notes


def study_identity(candidates: Sequence[Candidate], settings: Settings, inputs: Mapping[str, Mapping[str, Artifact]]) -> dict[str, Any]:
    """All that decides the outcome of a comparison, but for the machine: plain JSON. inputs: of stage pretrain, by recipe."""
    entries = []
    for candidate in candidates:
        alike = with_section(candidate.recipe, candidate.recipe.name, candidate.section.model_copy(update={"seed": 0}))
        own = identity(alike, STAGE, inputs[candidate.name])
        entries.append({"name": candidate.name, "seeds": list(candidate.seeds), "identity": own})
    options = settings.model_dump(mode="json", exclude={"name"})
    return {"compare": REVISION, "settings": options, "recipes": entries}


# --- sections of runs ---------------------------------------------------------------------------------------------------


def equal_steps(base_steps: int, base_cost: float, cost: float) -> int:
    """Steps at `cost` a step that spend what `base_steps` at `base_cost` do, to the nearest step. Units: any, the same."""
    if not (base_cost > 0 and cost > 0):
        raise ValueError(f"costs of a step must be above 0, not {base_cost} and {cost}")
    return max(1, round(base_steps * base_cost / cost))


def section_for(section: PretrainConfig, run: Run, own_steps: int) -> PretrainConfig:
    """The section of one run. own_steps: of the candidate at its whole budget; a run with a share of it has warmups and other
    stretches of steps in proportion, so that its schedule keeps its form."""
    changes: dict[str, Any] = {"seed": run.seed, "max_steps": run.max_steps}
    if run.factor != 1.0:
        changes["optimizer"] = scaled_lrs(section.optimizer, run.factor)
    scale = run.max_steps / own_steps
    if run.role != "run" and scale != 1.0:
        for key in ("schedule", "momentum_schedule", "weight_decay_schedule"):
            if (part := getattr(section, key)) is not None:
                changes[key] = scaled(part, scale, _is_stretch)
        changes["optimizer"] = scaled(changes.get("optimizer", section.optimizer), scale, _is_warmup)
    return section.model_copy(update=changes)


def check_run(section: PretrainConfig, candidate: str, run: Run) -> None:
    """Raises RecipeError when the section of a run does not hold together, as with a warmup longer than the run."""
    if problems := check_training(section):
        advice = {
            "lr": " (a run of the learning-rate search; --no-tune-lr skips it)",
            "curve": " (a run of the baseline's curve; --curve changes it)",
            "run": "",
        }
        raise RecipeError(f"{candidate}: with {plural(run.max_steps, 'step')}{advice[run.role]}: " + "; ".join(problems))


def has_lr(optimizer: Part) -> bool:
    """Whether the optimizer has learning rates among its options."""
    return scaled_lrs(optimizer, 2.0) != optimizer


def _is_stretch(key: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and (key in ("steps", "timescale") or key.endswith("_steps"))


def _is_warmup(key: str, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and "warmup" in key


def with_section(recipe: Recipe, name: str, section: PretrainConfig) -> Recipe:
    """The recipe up to pretrain, called `name`, with this section."""
    stages = {stage: recipe.stages[stage] for stage in stages_for(recipe, [STAGE])}
    stages[STAGE] = StageEntry(STAGE, recipe.stages[STAGE].spec, section)
    changes = recipe.changes | section_changes(STAGE, recipe.stages[STAGE].section, section)
    return dataclasses.replace(recipe, name=name, stages=stages, changes=changes)


# --- which runs -----------------------------------------------------------------------------------------------------------


def main_runs(candidates: Sequence[Candidate], steps: Mapping[str, int], factors: Mapping[str, float]) -> list[Run]:
    """Every seed of every candidate, seed by seed; every other seed in reverse, so that a machine that slows down slows down all."""
    runs = []
    for i in range(len(candidates[0].seeds)):
        turn = [Run(f"{s.name}-seed{s.seeds[i]}", s.name, "run", s.seeds[i], steps[s.name], factors[s.name]) for s in candidates]
        runs += turn if i % 2 == 0 else turn[::-1]
    return runs


def curve_runs(candidate: Candidate, steps: int, factor: float, settings: Settings) -> list[Run]:
    """The baseline under its first seed at other budgets."""
    seed = candidate.seeds[0]
    return [
        Run(f"{candidate.name}-budget{share:g}-seed{seed}", candidate.name, "curve", seed, max(1, round(steps * share)), factor, share)
        for share in settings.curve
    ]


def lr_run(candidate: Candidate, steps: int, factor: float, settings: Settings) -> Run:
    seed, share = candidate.seeds[0], settings.lr_search_fraction
    return Run(f"{candidate.name}-lr{factor:g}-seed{seed}", candidate.name, "lr", seed, max(1, round(steps * share)), factor, share)


def token_steps(candidates: Sequence[Candidate]) -> dict[str, int]:
    """Steps of every candidate that see as many tokens as the baseline does."""
    base = candidates[0].section
    return {s.name: equal_steps(base.max_steps, base.batch_size * base.seq_len, s.section.batch_size * s.section.seq_len) for s in candidates}


def check_plan(candidates: Sequence[Candidate], steps: Mapping[str, int], settings: Settings) -> None:
    """Raises RecipeError when a run that is planned cannot be, before any is begun."""
    if settings.budget == "time" and any(candidate.section.parallel.strategy != "none" for candidate in candidates):
        raise RecipeError("equal time is measured in one process, and a recipe trains in several (pretrain.parallel); compare by tokens or flops")
    by_name, base = {candidate.name: candidate for candidate in candidates}, candidates[0]
    planned = main_runs(candidates, steps, dict.fromkeys(steps, 1.0)) + curve_runs(base, steps[base.name], 1.0, settings)
    if settings.tune_lr != "off":
        planned += [lr_run(candidate, steps[candidate.name], 1.0, settings) for candidate in candidates]
    for run in planned:
        check_run(section_for(by_name[run.recipe].section, run, steps[run.recipe]), run.recipe, run)


EXTENSIONS = 2
"""Learning rates that are added where the best one is at the edge of the search range."""


@dataclass(frozen=True)
class LRChoice:
    """factor: multiple of the recipe's learning rates that is used. best: the best one tried. tried: bits per byte by factor, None where
    the run diverged. at_edge: the best lies at an end of what was tried."""

    factor: float
    best: float
    tried: dict[float, float | None]
    at_edge: bool
    note: str = ""


def next_factor(tried: Mapping[float, float | None], settings: Settings) -> float | None:
    """The factor to try next if the best one so far is at the edge of the range; None otherwise, or when enough were tried."""
    best = _best(tried)
    low, high = min(tried), max(tried)
    if best is None or len(tried) < 2 or len(tried) >= len(settings.lr_factors) + EXTENSIONS or best not in (low, high):
        return None
    ordered = sorted(tried)
    return low * low / ordered[1] if best == low else high * high / ordered[-2]


def choose_lr(candidate: str, tried: Mapping[float, float | None], settings: Settings) -> LRChoice:
    """The best learning rate, but the recipe's own if no other is better by more than half of `effect`: one short run per
    learning rate is too noisy for smaller gains."""
    best = _best(tried)
    if best is None:
        return LRChoice(1.0, 1.0, dict(tried), False, f"{candidate}: every run of the learning-rate search diverged; the recipe's own learning rate is used.")
    own, reached = tried.get(1.0), tried[best]
    assert reached is not None
    worth = own is None or own - reached > settings.effect / 2
    factor = best if worth and settings.tune_lr == "best" else 1.0
    at_edge = worth and best in (min(tried), max(tried))
    note = ""
    if worth and best != 1.0:
        gain = "its own diverged" if own is None else f"{own - reached:.4f} bits per byte better than its own"
        use = "used" if settings.tune_lr == "best" else "only reported (--keep-lr)"
        note = f"{candidate}: the best learning rate in the search was {best:g} times its own ({gain}); {use}."
    if at_edge:
        note = (
            f"{note} It is at the edge of the search range; a better one may lie outside."
            if note
            else f"{candidate}: its own learning rate is at the edge of the search range; a better one may lie outside."
        )
    return LRChoice(factor, best, dict(tried), at_edge, note)


def _best(tried: Mapping[float, float | None]) -> float | None:
    finished = {factor: loss for factor, loss in tried.items() if loss is not None}
    return min(finished, key=lambda factor: (finished[factor], abs(factor - 1.0))) if finished else None
