"""What an expectation may say, and how paired runs answer it."""

from __future__ import annotations

import math
import random

import pytest
from pydantic import ValidationError

from feebcore.claim import Claim, Reaches, Relation, Term, Trains, parse, variants_of
from feebcore.claims.judge import judge, judge_reaches
from feebcore.errors import RecipeError
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
        Claim(says="x", expect=text)


def values(**means: float):
    """Runs whose noise is shared by seed, with a little of their own; lower early, by a little that differs as well."""
    noise = lambda *place: random.Random(f"run {place}").gauss(0, 0.002)  # noqa: E731
    table = {(name, seed): mean + 0.05 * seed + noise(name, seed) for name, mean in means.items() for seed in SEEDS}
    return lambda variant, seed, step: table[variant, seed] - (0.0 if step is None else 1.0 / step + noise(variant, seed, step))


def kind(text: str, **means: float) -> str:
    return judge(parse(text), SEEDS, values(**means)).kind


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
    assert judge(parse("a = b within 1%"), SEEDS, values(a=2.0, b=2.0)).margin == pytest.approx(0.0207, abs=0.001)


def test_differences_of_differences_and_of_steps() -> None:
    assert kind("a - b > c - d", a=2.5, b=2.0, c=2.1, d=2.0) == "agrees"
    assert kind("a@10 < a@50", a=2.0) == "agrees"
    assert kind("a > 10 * b", a=30.0, b=2.0) == "agrees"


def test_nothing_is_told_of_what_is_left_where_runs_diverged() -> None:
    whole = values(a=2.0, b=2.1)
    for text in ("a < b", "a > b", "a = b within 1"):
        lost = judge(parse(text), SEEDS, lambda v, s, t: None if (v, s) == ("a", 1) else whole(v, s, t))
        assert (lost.kind, lost.lost, lost.difference) == ("cannot tell", 1, None)
        assert "1 of 4 seeds" in lost.why


def test_seeds_that_all_say_the_same_settle_a_bound_but_no_difference() -> None:
    same = lambda variant, seed, step: {"a": 0.0, "b": 1.0}[variant]  # noqa: E731
    assert judge(parse("a < 0.5"), SEEDS, same).kind == "agrees"
    assert judge(parse("a > 0.5"), SEEDS, same).kind == "disagrees"
    assert judge(parse("a < b"), SEEDS, same).kind == "cannot tell"


def test_training_is_told_from_guessing_and_from_diverging() -> None:
    """The value is the loss as a share of an even guess."""
    assert kind("a trains", a=0.4) == "agrees"
    assert kind("a trains", a=0.99) == "disagrees"
    assert judge(parse("a trains"), SEEDS, lambda v, s, t: None).kind == "disagrees"


def test_by_chance_alone_a_finding_is_called_in_one_of_twenty() -> None:
    """Two thousand pairs of recipes that do not differ."""
    noise = random.Random(0)
    called = 0
    for _ in range(2000):
        table = {(name, seed): noise.gauss(0, 1) for name in "ab" for seed in SEEDS}
        called += judge(parse("a < b"), SEEDS, lambda v, s, t, table=table: table[v, s]).kind != "cannot tell"
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
    path.write_text(RECIPE + "claims:\n  one: {claim: it helps, expect: wide < narow, stage: download}\n")
    with pytest.raises(RecipeError, match=r"study\.yaml:8.*claim 'one' names 'narow'; did you mean 'narrow'"):
        load_study(path)
    path.write_text(RECIPE + "claims:\n  one: {claim: it helps, expect: wide, metrik: x}\n")
    with pytest.raises(RecipeError, match=r"study\.yaml:8.*expect.*write `a < b`(.|\n)*unknown key 'claims\.one\.metrik'"):
        load_study(path)


def test_seeds_variants_and_stages_that_make_no_study_are_refused(tmp_path) -> None:
    path = tmp_path / "study.yaml"
    for text, what in (
        (RECIPE + "seeds: [0, 0]\n", "names one twice"),
        (RECIPE.replace("narrow: {}", "narrow: {seed: 3}"), "cannot set the recipe's seed"),
        (RECIPE + "claims: {x: {claim: a, expect: wide < narrow, stage: downlod}}\n", r"is of stage 'downlod'; did you mean 'download'"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=what):
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


def test_what_is_reached_is_told_from_what_is_flat_and_from_what_was_cut_short() -> None:
    assert parse("a and b reaches 0.5") == Reaches(("a", "b"), 0.5)
    assert variants_of(parse("a, b and c reaches 1e-1")) == ["a", "b", "c"]
    for text in ("a reaches", "a reaches 0", "a reaches low", "a@50 reaches 1", "reaches 1"):
        with pytest.raises(ValueError, match=r"reaches|variant|write"):
            parse(text)
    met, flat, cut = ("loss", 80, 0.49), ("flat", 130, 0.61), ("max_steps", 400, 0.55)
    said = lambda *ends: (judge_reaches(0.5, ends).kind, judge_reaches(0.5, ends).why)  # noqa: E731
    assert said(met, ("max_steps", 400, 0.5)) == ("agrees", "met at step 80 to 400")
    assert said(flat, flat) == ("disagrees", "flat at loss 0.610")
    assert said(flat, None) == ("disagrees", "1 of 2 runs flat at loss 0.610; 1 of 2 runs diverged")
    assert said(met, met, flat) == ("cannot tell", "2 of 3 runs met at step 80; 1 of 3 runs flat at loss 0.610")
    assert said(cut, cut) == ("cannot tell", "ended at loss 0.550, not yet flat")
