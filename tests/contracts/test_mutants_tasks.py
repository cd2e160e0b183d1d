"""Deliberately broken tasks, filters and options: each is caught by a named check, and its sound form by none."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import polars as pl
import pytest
from pydantic import Field
from torch import Tensor

import feebcore as feeb
from feeb_models.attentions.multi_head import MultiHeadConfig
from feeb_models.attentions.multi_head.grouped_query import GroupedQueryAttention
from feeb_models.attentions.options import AttentionConfig
from feebcore.model.context import ForwardContext
from feebcore.parts import Part
from feebcore.protocols import Problem, Task
from feebcore.testing import check_part


def task(reward: Callable[[Problem, str], float], limit: int = 5, answers: Callable[[int], str] = lambda n: f"{n:04}") -> Part:
    """The digits of a number, backwards."""

    class Mutant(Task):
        max_completion_tokens = limit

        def problem(self, rng: Any) -> Problem:
            answer = answers(int(rng.integers(0, 10_000)))
            return Problem(f"{answer[::-1]}=", answer, answer)

        def reward(self, problem: Problem, completion: str) -> float:
            return reward(problem, completion)

    spec = feeb.TaskSpec("mutant", build=lambda config, context: Mutant(), summary="A broken part.")
    return Part("tasks", spec, spec.config())


def exact(problem: Problem, completion: str) -> float:
    return float(completion == problem.answer)


def first_word(problem: Problem, completion: str) -> float:
    return float(completion.split()[:1] == [problem.answer])


TASKS = {
    "answer anywhere in the completion": (task(lambda p, text: float(p.answer in text)), "listing_answers_is_not_rewarded"),
    "answer among the words": (task(lambda p, text: float(p.answer in text.split())), "listing_answers_is_not_rewarded"),
    "answer among the lines": (task(lambda p, text: float(p.answer in text.splitlines())), "listing_answers_is_not_rewarded"),
    "answer among what stands between commas": (task(lambda p, text: float(p.answer in text.split(","))), "listing_answers_is_not_rewarded"),
    "answer at the beginning": (task(lambda p, text: float(text.startswith(p.answer))), "nothing_but_the_answer_is_right"),
    "answer at the end": (task(lambda p, text: float(text.endswith(p.answer))), "nothing_but_the_answer_is_right"),
    "first word alone": (task(first_word), "nothing_but_the_answer_is_right"),
    "last word alone": (task(lambda p, text: float(text.split()[-1:] == [p.answer])), "nothing_but_the_answer_is_right"),
    "no room for the end token": (task(exact, limit=4), "answers_fit_their_limit"),
    "no room for the answer": (task(exact, limit=3), "answers_fit_their_limit"),
    "no room for letters beyond ASCII": (task(exact, answers=lambda n: f"{n:03}é"), "answers_fit_their_limit"),
}


def filter_of(expression: pl.Expr, size: pl.Expr | None = None) -> Part:
    """Text as the expression makes it, and num_bytes recounted as the other says."""

    def build(config: Any, context: Any) -> Callable[[pl.LazyFrame], pl.LazyFrame]:
        def change(documents: pl.LazyFrame) -> pl.LazyFrame:
            documents = documents.with_columns(text=expression)
            return documents if size is None else documents.with_columns(num_bytes=size)

        return change

    spec = feeb.FilterSpec("mutant", build=build, summary="A broken part.")
    return Part("filters", spec, spec.config())


TEXT = pl.col("text")
FILTERS = {
    "spaces stripped": (filter_of(TEXT.str.strip_chars()), "sizes_follow_the_text"),
    "addresses removed": (filter_of(TEXT.str.replace_all(r"https?://\S+", "")), "sizes_follow_the_text"),
    "markup removed": (filter_of(TEXT.str.replace_all("<[^>]*>", "")), "sizes_follow_the_text"),
    "accents dropped": (filter_of(TEXT.str.replace_all("é", "e")), "sizes_follow_the_text"),
    "characters counted for bytes": (filter_of(TEXT, TEXT.str.len_chars()), "sizes_follow_the_text"),
}


class Options(MultiHeadConfig):
    sharpness: float = Field(1.0, description="scores are multiplied by it")


class StatedOptions(Options):
    inert: ClassVar[tuple[str, ...]] = ("sharpness",)


def attention(config: type[AttentionConfig], **members: Any) -> Part:
    spec = feeb.AttentionSpec("mutant", config, build=type("Mutant", (GroupedQueryAttention,), members), summary="A broken part.")
    return Part("attentions", spec, config())


def without(**settings: Any) -> Callable[..., Tensor]:
    """mha's pass with these settings of the context as they are by default."""

    def forward(self: Any, x_BTC: Tensor, context: ForwardContext) -> Tensor:
        return GroupedQueryAttention.forward(self, x_BTC, dataclasses.replace(context, **settings))

    return forward


OPTIONS = {
    "option that nothing reads": (attention(Options), "options_have_an_effect"),
    "attention_dropout not applied": (attention(MultiHeadConfig, forward=without(dropout=0.0)), "attention_dropout_is_applied"),
    "window of the pass not kept": (attention(MultiHeadConfig, forward=without(window=0)), "context_window_is_kept"),
}

FAMILIES = {"tasks": TASKS, "filters": FILTERS, "options": OPTIONS}
MUTANTS = {name: pair for family in FAMILIES.values() for name, pair in family.items()}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught_by_its_check(name: str) -> None:
    broken, wanted = MUTANTS[name]
    (result,) = check_part(broken.kind, broken, only=[wanted])
    assert not result.passed, f"{name} passed {wanted}"
    assert not result.raised, result.message


@pytest.mark.parametrize(
    "twin",
    [
        task(exact),
        filter_of(TEXT),
        filter_of(TEXT.str.strip_chars(), TEXT.str.strip_chars().str.len_bytes()),
        attention(StatedOptions),
        attention(MultiHeadConfig),
    ],
    ids=["task", "filter", "filter that recounts", "option said to be inert", "attention"],
)
def test_the_unbroken_form_of_the_mutants_passes(twin: Part) -> None:
    wanted = {check for _, check in MUTANTS.values()}
    assert [str(result) for result in check_part(twin.kind, twin, only=wanted) if not result.passed] == []


def test_a_check_that_does_not_apply_is_skipped_and_says_why() -> None:
    (result,) = check_part("attentions", attention(MultiHeadConfig), only=["matches_reference"])
    assert (result.passed, str(result)) == (True, f"attentions/mutant: matches_reference skipped: {result.skipped}")
    assert "no NumPy reference" in result.skipped


def test_a_summary_of_one_word_is_told_what_is_wrong_with_it() -> None:
    part = task(exact)
    shown = {r.check: r for r in check_part("tasks", dataclasses.replace(part, spec=dataclasses.replace(part.spec, summary="Reverse.")))}
    assert shown["well_formed"].passed
    assert "'Reverse.' is not a sentence" in shown["summary_is_a_sentence"].message
    assert "build" not in shown["summary_is_a_sentence"].message
