"""Runs named checks on a part. A check is a function that raises CheckFailed, saying what it saw."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from feebcore.parts import Part
from feebcore.specs import PartSpec

if TYPE_CHECKING:
    from feebcore.registry import Registry

FAMILIES = ("generic", "models", "blocks", "objectives", "training", "data", "sampling", "tasks", "evaluation", "options", "thorough")


class CheckFailed(AssertionError):
    """A part broke a promise; the message says what was seen."""


class DoesNotApply(Exception):
    """The check asks nothing of this part; the message says why."""


@dataclass(frozen=True)
class Candidate:
    """A part under test, with options from its defaults, or from `example` on its config class where it has some."""

    kind: str
    part: Part
    registry: Registry | None = None
    complete: bool = True  # False: some option has neither a default nor an example, so the part cannot be built here

    @property
    def spec(self) -> PartSpec:
        return self.part.spec

    @property
    def has_a_name(self) -> bool:
        """Whether a plugin offers this very part, so that any process finds it by its name."""
        from feebcore.errors import FeebError
        from feebcore.registry import get_registry

        try:
            found = (self.registry or get_registry()).resolve(self.kind, self.part.name)
            return found is self.spec and bool(self.spec.origin)
        except FeebError:
            return False


@dataclass(frozen=True)
class Check:
    """meaning: one sentence, what a failure means and which mistake usually causes it. quick: cheap, and a part that fails it gives
    results that cannot be believed, so it is run before a recipe uses the part. full: slow, run only when asked for, and always on
    the built-in parts in `always`. elsewhere: other processes build the part, so a plugin must offer it by its name."""

    name: str
    kinds: tuple[str, ...]  # empty: every kind
    meaning: str
    run: Callable[[Candidate], None]
    quick: bool = False
    full: bool = False
    always: tuple[str, ...] = ()
    elsewhere: bool = False


@dataclass(frozen=True)
class CheckResult:
    kind: str
    part: str
    check: str
    passed: bool
    message: str = ""
    seconds: float = 0.0
    skipped: str = ""  # why the check does not apply; `passed` is then true
    raised: bool = False  # the part raised something, rather than gave a wrong result

    def __str__(self) -> str:
        outcome = f"FAILED: {self.message}" if not self.passed else f"skipped: {self.skipped}" if self.skipped else "ok"
        return f"{self.kind}/{self.part}: {self.check} {outcome}"


_CHECKS: dict[str, Check] = {}


def check(
    *kinds: str, meaning: str, quick: bool = False, full: bool = False, always: tuple[str, ...] = (), elsewhere: bool = False
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Register a function as the check of its name on these kinds (none: on every kind)."""

    def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
        name = function.__name__
        assert name not in _CHECKS or _CHECKS[name].run.__module__ == function.__module__, f"two checks are called {name}"
        _CHECKS[name] = Check(name, kinds, meaning, function, quick, full, always, elsewhere)
        return function

    return register


def fail(text: str) -> NoReturn:
    raise CheckFailed(text)


def skip(why: str) -> NoReturn:
    """Leave a check that asks nothing of this part."""
    raise DoesNotApply(why)


def require(condition: Any, text: str) -> None:
    if not condition:
        fail(text)


@functools.cache
def _load_checks() -> dict[str, Check]:
    for family in FAMILIES:
        importlib.import_module(f"feebcore.testing.{family}")
    return _CHECKS


WITHOUT_QUICK_CHECKS = ("stages", "sources", "callbacks", "algorithms", "planners", "laws", "importers", "exporters")
"""Kinds that have no quick check: what they do, a run shows at once, or only a run can."""

NEEDS_THE_WORLD = ("stages", "sources", "planners", "benchmarks", "importers", "exporters")
"""Extension points whose parts may have options that nobody but the recipe can fill in: paths, addresses, budgets."""


def checks_for(kind: str) -> list[Check]:
    """Every check of a kind, in the order in which they stand in their files."""
    return [c for c in _load_checks().values() if not c.kinds or kind in c.kinds]


def candidate(kind: str, part: str | Part, registry: Registry | None = None) -> Candidate:
    """The part of this name as a Candidate. Options: `example` (a dict) on its config class, else the defaults."""
    from feebcore.parts import resolve_part
    from feebcore.registry import get_registry

    if isinstance(part, Part):
        return Candidate(kind, part, registry)
    spec = (registry or get_registry()).resolve(kind, part)
    if any(f.is_required() for k, f in spec.config.model_fields.items() if k not in example_options(spec)):
        return Candidate(kind, Part(kind, spec, spec.config.model_construct()), registry, complete=False)
    return Candidate(kind, resolve_part(kind, {"name": part, **example_options(spec)}, registry), registry)


def example_options(spec: PartSpec) -> dict[str, Any]:
    """`example` on the config class: a dict, or a function that makes one, for options that need something on disk."""
    example = getattr(spec.config, "example", {})
    return dict(example() if callable(example) else example)


@contextmanager
def one_thread() -> Iterator[None]:
    """Models this small lose more to waking threads than they gain."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_check(check: Check, subject: Candidate) -> CheckResult:
    """Run one check; anything it raises is a failure of the part, and a check that the part says it breaks must fail."""
    begun = time.perf_counter()
    message = skipped = ""
    raised = False
    try:
        with one_thread():
            check.run(subject)
    except CheckFailed as error:
        message = f"{error}. {check.meaning}"
    except DoesNotApply as reason:
        skipped = str(reason)
    except Exception as error:  # a broken part may raise anything; that is its result
        raised = True
        message = f"it raised {type(error).__name__}: {error}. {check.meaning}"
    if check.name in subject.spec.breaks:
        message = "" if message else f"it passes, but its spec says that it breaks {check.name}. Take the name out of `breaks`."
    return CheckResult(subject.kind, subject.part.name, check.name, not message, message, time.perf_counter() - begun, skipped, raised)


def check_part(kind: str, part: str | Part, only: Iterable[str] = (), registry: Registry | None = None) -> list[CheckResult]:
    """Run the contract of `kind` on a part given by name or chosen with options. only: names of checks."""
    return list(iterate(candidate(kind, part, registry), only))


def iterate(subject: Candidate, only: Iterable[str] = (), full: bool = False) -> Iterator[CheckResult]:
    """The results of `applicable` checks, one after the other."""
    yield from (run_check(item, subject) for item in applicable(subject, only, full))


def applicable(subject: Candidate, only: Iterable[str] = (), full: bool = False) -> list[Check]:
    """The checks of these names; without names all but the slow ones, and with `full` all. Of a part that cannot be built
    here only whether it is well formed and described."""
    wanted, name = set(only), f"{subject.kind}/{subject.part.name}"
    asked = [c for c in checks_for(subject.kind) if (c.name in wanted if wanted else full or not c.full or name in c.always)]
    asked = [c for c in asked if wanted or not c.elsewhere or subject.has_a_name]
    return [c for c in asked if subject.complete or c.name in ("summary_is_a_sentence", "well_formed")]
