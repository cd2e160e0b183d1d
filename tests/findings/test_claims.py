"""What an expectation may say, and how paired runs answer it."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import ValidationError

from feebcore.errors import RecipeError
from feebcore.findings.claims import Finding, Relation, Term, Trains, parse, variants_of
from feebcore.findings.judge import judge
from feebcore.recipe import load_study, quick_overrides

SEEDS = (0, 1, 2, 3)


def test_expectations_parse_to_what_they_say() -> None:
    assert parse("a < b") == Relation((Term(1.0, "a"),), "<", (Term(1.0, "b"),))
    assert parse("one-token = b.c within 1%") == Relation((Term(1.0, "one-token"),), "=", (Term(1.0, "b.c"),), 1.0, True)
    assert parse("a@50 - b@50 > 2 * a - b + 0.1") == Relation((Term(1.0, "a", 50), Term(-1.0, "b", 50)), ">", (Term(2.0, "a"), Term(-1.0, "b"), Term(0.1)))
    assert parse("a and b trains") == Trains(("a", "b"))
    assert variants_of(parse("a - b < a@5 - c")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "text", ["a", "a <", "< b", "a<b", "a < b < c", "a = b", "a < b within 1%", "a = b within x", "a b < c", "a - < b", "a = b within 0", "trains"]
)
def test_what_is_no_expectation_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"expect"):
        Finding(says="x", expect=text)


def values(**means: float):
    """Runs whose noise is shared by seed, with a little of their own; lower early, by a little that differs as well."""
    noise = lambda *place: random.Random(f"run {place}").gauss(0, 0.002)  # noqa: E731
    table = {(name, seed): mean + 0.05 * seed + noise(name, seed) for name, mean in means.items() for seed in SEEDS}
    return lambda variant, seed, step: table[variant, seed] - (0.0 if step is None else 1.0 / step + noise(variant, seed, step))


def kind(text: str, **means: float) -> str:
    return judge(parse(text), SEEDS, values(**means), guessing=6.0).kind


def test_a_difference_is_told_from_its_opposite_and_from_none() -> None:
    assert kind("a < b", a=2.0, b=2.05) == "agrees"
    assert kind("a > b", a=2.0, b=2.05) == "disagrees"
    assert kind("a < b", a=2.0, b=2.0) == "cannot tell"
    assert kind("a < b - 0.1", a=2.0, b=2.05) == "disagrees"
    assert kind("a < 3", a=2.0) == "agrees"


def test_sameness_needs_the_whole_interval_within_the_margin() -> None:
    assert kind("a = b within 1%", a=2.0, b=2.0) == "agrees"
    assert kind("a = b within 1%", a=2.0, b=2.1) == "disagrees"
    assert kind("a = b within 0.001", a=2.0, b=2.0) == "cannot tell"
    assert judge(parse("a = b within 1%"), SEEDS, values(a=2.0, b=2.0), 6.0).margin == pytest.approx(0.0207, abs=0.001)


def test_differences_of_differences_and_of_steps() -> None:
    assert kind("a - b > c - d", a=2.5, b=2.0, c=2.1, d=2.0) == "agrees"
    assert kind("a@10 < a@50", a=2.0) == "agrees"
    assert kind("a > 10 * b", a=30.0, b=2.0) == "agrees"


def test_runs_without_a_number_are_counted_and_nothing_is_claimed_of_the_rest() -> None:
    whole = values(a=2.0, b=2.1)
    lost = judge(parse("a < b"), SEEDS, lambda v, s, t: None if (v, s) == ("a", 1) else whole(v, s, t), 6.0)
    assert (lost.kind, lost.lost) == ("cannot tell", 1)
    assert "1 of 4 seeds" in lost.why
    none = judge(parse("a < b"), SEEDS, lambda v, s, t: None if v == "a" else whole(v, s, t), 6.0)
    assert none.kind == "cannot tell"
    assert none.found is None


def test_training_is_told_from_guessing_and_from_diverging() -> None:
    assert kind("a trains", a=2.0) == "agrees"
    assert kind("a trains", a=5.9) == "disagrees"
    assert judge(parse("a trains"), SEEDS, lambda v, s, t: None, 6.0).kind == "disagrees"


def test_by_chance_alone_a_finding_is_called_in_one_of_twenty() -> None:
    """Two thousand pairs of recipes that do not differ."""
    noise = random.Random(0)
    called = 0
    for _ in range(2000):
        table = {(name, seed): noise.gauss(0, 1) for name in "ab" for seed in SEEDS}
        called += judge(parse("a < b"), SEEDS, lambda v, s, t, table=table: table[v, s], 1.0).kind != "cannot tell"
    assert abs(called / 2000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 2000)


RECIPE = """
name: study
stages: [download]
download: {sources: [stdlib]}
variants: {narrow: {}, wide: {download.split_modulus: 5}}
quick: {seeds: [0, 1], download.split_modulus: 7}
"""


def test_a_recipe_says_where_its_finding_is_wrong(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(RECIPE + "findings:\n  one: {says: it helps, expect: wide < narow}\n")
    with pytest.raises(RecipeError, match=r"study\.yaml:8.*finding 'one' names 'narow'; did you mean 'narrow'"):
        load_study(path)
    path.write_text(RECIPE + "findings:\n  one: {says: it helps, expect: wide, metrik: x}\n")
    with pytest.raises(RecipeError, match=r"study\.yaml:8.*expect.*write `a < b`(.|\n)*unknown key 'findings\.one\.metrik'"):
        load_study(path)


def test_quick_is_the_recipe_at_the_scale_it_names(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(RECIPE)
    members = load_study(path, [*quick_overrides(path), "download.split_modulus=9"])
    assert [m.name for m in members] == ["study-quick-narrow-seed0", "study-quick-narrow-seed1", "study-quick-wide-seed0", "study-quick-wide-seed1"]
    assert [m.stages["download"].section.split_modulus for m in members] == [9, 9, 5, 5]
    path.write_text("name: plain\nstages: [download]\ndownload: {sources: [stdlib]}\n")
    with pytest.raises(RecipeError, match="no `quick:` section"):
        quick_overrides(path)
