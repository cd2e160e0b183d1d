"""What every part promises, whatever its kind."""

from __future__ import annotations

from feebcore.config import identity_of
from feebcore.parts import resolve_part
from feebcore.testing.framework import NEEDS_THE_WORLD, Candidate, check, checks_for, require, skip


@check(meaning="`feeb parts` and the docs show the summary as the part's description; write a sentence that ends with a full stop.")
def summary_is_a_sentence(subject: Candidate) -> None:
    summary = subject.spec.summary
    require(len(summary.split()) > 1 and summary.endswith("."), f"summary {summary!r} is not a sentence")


@check(meaning="The part cannot be explained or loaded; a wrong path in `build` is the usual cause.")
def well_formed(subject: Candidate) -> None:
    spec = subject.spec
    unknown = set(spec.breaks) - {c.name for c in checks_for(subject.kind)}
    require(not unknown, f"breaks names {', '.join(sorted(unknown))}, which is not a check of {subject.kind}")
    require(callable(spec.load()), f"build {spec.build!r} is not callable")
    missing = [key for key, field in spec.config.model_fields.items() if field.is_required()]
    require(subject.complete or subject.kind in NEEDS_THE_WORLD, f"{', '.join(missing)} has no default; give one, or an `example` on the config class")


@check(meaning="The options do not survive being written to a recipe and read again, so a run could not be repeated.")
def options_round_trip(subject: Candidate) -> None:
    if subject.kind == "stages":
        skip("a stage is a section of a recipe")
    again = resolve_part(subject.kind, subject.part.dump(), subject.registry)
    require(again == subject.part and identity_of(again.config) == identity_of(subject.part.config), f"{subject.part.dump()} reads back as {again.dump()}")
