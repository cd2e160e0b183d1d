"""Roles of keys, parts inside configs, and what enters a fingerprint."""

import json
from typing import Annotated

import pydantic
import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

import feebcore as feeb
from feebcore.config import identity_of
from feebcore.parts import default_of, parts_in
from feebcore.registry import get_registry


class Inner(feeb.PartConfig):
    width: int = 4
    depth: int = 2


class Section(feeb.StageConfig):
    steps: int
    rate: float = 0.1
    device: feeb.Execution[str] = "auto"
    every: feeb.Observation[int] = 10
    inner: Inner = Inner()
    schedule: Annotated[feeb.Part, feeb.PartKey("schedules")] = feeb.default_part("constant")
    several: list[Annotated[feeb.Part, feeb.PartKey("schedules")]] = []


def test_execution_and_observation_keys_are_not_identity():
    plain = identity_of(Section(steps=5))
    assert identity_of(Section(steps=5, device="cuda", every=1)) == plain


def test_a_key_at_its_default_is_not_identity_however_it_was_written():
    assert identity_of(Section(steps=5, rate=0.1, inner=Inner(width=4))) == identity_of(Section(steps=5))


def test_identity_changes_with_each_identity_key():
    base = identity_of(Section(steps=5))
    changed = [Section(steps=6), Section(steps=5, rate=0.2), Section(steps=5, inner=Inner(depth=3)), Section(steps=5, several=["constant"])]
    assert all(identity_of(s) != base for s in changed)


class Optional(feeb.StageConfig):
    """How pydantic users write an optional feature."""

    feature: Inner | None = None
    narrow: Inner = Inner(width=2)
    many: list[Inner] = []


def test_a_sub_config_of_defaults_is_not_the_same_as_none_of_it():
    configs = [Optional(), Optional(feature=Inner()), Optional(narrow=Inner()), Optional(many=[Inner()]), Optional(many=[Inner(), Inner()])]
    identities = [identity_of(c) for c in configs]
    assert all(a != b for i, a in enumerate(identities) for b in identities[:i])
    assert identity_of(Optional(feature=None, narrow=Inner(width=2))) == identities[0]


class Watched(feeb.StageConfig):
    schedule: Annotated[feeb.Part, feeb.PartKey("schedules")] = feeb.default_part("constant")
    callbacks: feeb.Observation[list[Annotated[feeb.Part, feeb.PartKey("callbacks")]]] = pydantic.Field(default=["metrics"], validate_default=True)


def test_parts_that_only_watch_are_told_from_those_that_change_the_result():
    assert [p.name for p in parts_in(Watched())] == ["constant", "metrics"]
    assert [p.name for p in parts_in(Watched(), identity_only=True)] == ["constant"]


def test_a_chosen_part_always_shows_its_revision_and_source():
    shown = identity_of(Section(steps=5))["schedule"]
    assert len(shown.pop("source")) == 16
    assert shown == {"part": "feeb/constant", "revision": 1}


def test_parts_are_found_in_lists_too():
    section = Section(steps=1, several=["constant", {"name": "constant"}])
    assert [p.name for p in parts_in(section)] == ["constant", "constant", "constant"]


def test_unknown_options_of_a_part_are_refused():
    with pytest.raises(ValidationError, match="wormup"):
        Section(steps=1, schedule={"name": "linear", "wormup": 3})


def test_dump_loads_to_the_same_config():
    section = Section(steps=3, schedule="constant", rate=0.5)
    assert Section.model_validate(section.model_dump(mode="json")) == section


def test_nan_is_no_option():
    with pytest.raises(ValidationError):
        Section(steps=1, rate=float("nan"))


def test_every_default_is_shown_as_a_recipe_would_have_it():
    """What `feeb parts NAME` and the reference print, read as YAML, is the default."""
    yaml = YAML(typ="safe", pure=True)
    for _, spec in get_registry().parts():
        for key, field in spec.config.model_fields.items():
            if (shown := default_of(field)) in ("", "required"):
                continue
            given = field.get_default(call_default_factory=True)
            plain = json.loads(json.dumps(given, default=lambda part: {"name": part.name} | part.config.model_dump(mode="json", exclude_defaults=True)))
            found = yaml.load(shown)
            assert short(found) == short(plain), f"{spec.name}.{key}: {shown}"


def short(value):
    """Parts without options by their name alone."""
    if isinstance(value, dict):
        return value["name"] if set(value) == {"name"} else {k: short(v) for k, v in value.items()}
    return [short(v) for v in value] if isinstance(value, list) else value
