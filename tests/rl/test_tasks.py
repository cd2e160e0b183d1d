"""Tasks: the split, the verifiers, the batches that sft trains on."""

from __future__ import annotations

import string
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_toys import CharTokenizer, EmitTask, tiny_model

from feeb_rl.tasks.countdown.countdown import evaluate
from feebcore.errors import DataError
from feebcore.evaluate.intervals import wilson
from feebcore.generate.engine import Completion
from feebcore.parts import resolve_part
from feebcore.protocols import Problem
from feebcore.rl.examples import Examples
from feebcore.rl.tasks import encode_example, evaluate_task, held_out_problems, is_held_out, score, too_few_problems, training_problems


def task(name, **options):
    return resolve_part("tasks", {"name": name, **options}).build()


@pytest.mark.parametrize(("name", "options"), [("sort", {}), ("sort", {"digits": 3}), ("countdown", {}), ("countdown", {"numbers": 4})])
def test_no_training_problem_is_held_out(name, options):
    held_out = held_out_problems(task(name, **options), 64)
    keys = {i.key for i in held_out}
    assert len({i.prompt for i in held_out}) == len(held_out) == 64
    trained = training_problems(task(name, **options), 2000, 0, 0, 0)
    assert not keys & {i.key for i in trained}
    assert not any(map(is_held_out, trained))
    assert [i.key for i in held_out_problems(task(name, **options), 64)] == [i.key for i in held_out]
    assert [i.key for i in held_out_problems(task(name, **options), 32)] == [i.key for i in held_out[:32]]


def test_training_problems_are_a_function_of_their_numbers():
    sort = task("sort")
    assert training_problems(sort, 5, 1, 2, 3) == training_problems(sort, 5, 1, 2, 3)
    assert training_problems(sort, 5, 1, 2, 3) != training_problems(sort, 5, 1, 2, 4)


@pytest.mark.slow
def test_problems_that_differ_in_the_order_of_their_numbers_are_one_problem():
    """512 held-out prompts of countdown were 187 problems, so intervals were 1.7 times too narrow."""
    began = time.process_time()
    problems = held_out_problems(task("countdown"), 512)
    assert time.process_time() - began < 15
    assert len({p.key for p in problems}) == len(problems) < 250
    assert too_few_problems("countdown", problems, 512).startswith(f"task countdown has only {len(problems)} distinct held-out problems, 512 were asked for")
    assert too_few_problems("countdown", problems[:64], 64) == ""


class Exact(EmitTask):
    def reward(self, problem, completion):
        return float(completion == problem.answer)


def test_accuracy_counts_prompts_of_one_key_once(monkeypatch):
    """Six prompts of two problems, one of which is solved: half, of two."""
    problems = [Problem(f"{i}=", "a" if i < 4 else "b", "one" if i < 4 else "two") for i in range(6)]
    tokens = CharTokenizer().encode("a")
    completions = [Completion(tokens, [0.0], [0.0], "stop") for _ in problems]
    monkeypatch.setattr("feebcore.rl.tasks.generate", lambda *arguments, **options: completions)
    result = evaluate_task(tiny_model(21), CharTokenizer(), Exact(), problems)
    assert (result["value"], result["n"]) == (0.5, 2)
    assert (result["low"], result["high"]) == (wilson(1, 2).low, wilson(1, 2).high)


def test_a_task_too_small_to_split_gives_what_it_has_or_says_so():
    class Tiny(EmitTask):
        def problem(self, rng):
            return Problem("1=", "a", "one")

    held_out = is_held_out(Problem("1=", "a", "one"))
    with pytest.raises(DataError, match="too few problems"):
        (training_problems(Tiny(), 1, 0) if held_out else held_out_problems(Tiny(), 1))
    assert len(held_out_problems(task("sort", digits=2), 512)) < 30


@pytest.mark.parametrize(("name", "options"), [("sort", {"digits": 7}), ("countdown", {}), ("countdown", {"numbers": 2}), ("countdown", {"numbers": 4})])
def test_every_answer_is_right_ends_in_time_and_prompts_do_not_contain_it(name, options):
    part, tokenizer = task(name, **options), CharTokenizer()
    rng = np.random.default_rng(0)
    for _ in range(500):
        problem = part.problem(rng)
        assert part.reward(problem, problem.answer) == 1.0
        assert part.reward(problem, problem.answer + "0") == part.reward(problem, "") == 0.0
        prompt, answer = encode_example(tokenizer, problem)
        assert prompt[0] == tokenizer.bos_id
        assert answer[-1] == tokenizer.eos_id
        assert len(answer) <= part.max_completion_tokens


def test_sort_is_exact():
    part = task("sort")
    problem = Problem("72914=", "12479", "k")
    assert [part.reward(problem, text) for text in ("12479", "12479 ", " 12479", "1247", "72914", "12497")] == [1, 0, 0, 0, 0, 0]


def test_countdown_accepts_any_right_formula_and_no_cheat():
    part = task("countdown")
    problem = Problem("3 7 8=45:", "", "k", ((3, 7, 8), 45))
    right = ["(8+7)*3", "3*(7+8)", "3*7+8*3-0", "((7+8))*3"]
    assert [part.reward(problem, t) for t in right] == [1, 1, 0, 1]
    for cheat in ("45", "3*7+8*3", "+45", "(8+7)*03", "8+37", "3*7*8", "8+7*3", "(8+7)*3.0", "(8+7)*3 ", "３*(7+8)", "(8+7)*True", "", "(", "8**2", "8//3"):
        assert part.reward(problem, cheat) == 0.0, cheat


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*()", max_size=60) | st.text(alphabet=string.printable, max_size=60))
def test_the_verifier_survives_any_text_and_agrees_with_python_on_formulas(text):
    found = evaluate(text)
    if found is not None:
        value, used = found
        assert len(text) <= 48
        assert value == eval(text, {"__builtins__": {}})  # noqa: S307 - the verifier accepted it: digits, + - * and brackets
        assert sum(used.values()) >= 1


@pytest.mark.parametrize(
    "text", ["9" * 48, "9**9**9**9", "(" * 24 + "1" + ")" * 23, "-" * 47 + "1", "*".join("9" * 24), "lambda:1", "__import__('os')", "1" * 100_000]
)
def test_the_verifier_answers_at_once_on_hostile_text(text):
    began = time.process_time()
    evaluate(text)
    assert time.process_time() - began < 0.5


def test_countdown_keys_ignore_the_order_of_the_numbers():
    part, rng = task("countdown"), np.random.default_rng(0)
    for _ in range(200):
        problem = part.problem(rng)
        numbers, target = problem.data
        assert problem.key == f"countdown:{','.join(map(str, sorted(numbers)))}:{target}"
        assert evaluate(problem.answer)[1] == Counter(numbers)


def test_an_unfinished_completion_scores_nothing():
    part, tokenizer = task("sort"), CharTokenizer()
    problem = Problem("72914=", "12479", "k")
    ids = tokenizer.encode("12479")
    zeros = [0.0] * 6
    assert score(part, tokenizer, problem, Completion([*ids, tokenizer.eos_id], zeros, zeros, "stop")) == 1.0
    assert score(part, tokenizer, problem, Completion(ids, zeros[:5], zeros[:5], "length")) == 0.0


def test_sft_batches_cover_the_answer_and_the_end_token_and_nothing_else():
    tokenizer = CharTokenizer()
    data = Examples(task("countdown"), tokenizer, 32, seed=0, seq_len=64)
    batch = data.batch(3)
    again = data.batch(3)
    assert all((a == b).all() for a, b in ((batch.tokens, again.tokens), (batch.targets, again.targets), (batch.mask, again.mask)))
    for tokens, targets, mask, problem in zip(batch.tokens, batch.targets, batch.mask, training_problems(data.task, 32, 0, 0x736674, 3), strict=True):
        prompt, answer = encode_example(tokenizer, problem)
        assert targets[mask].tolist() == answer
        assert tokens[: len(prompt)].tolist() == prompt
        assert int(mask.nonzero()[0]) == len(prompt) - 1
    assert (batch.tokens != data.batch(4).tokens).any()
    with pytest.raises(DataError, match="context is 8"):
        Examples(task("countdown"), tokenizer, 4, seed=0, seq_len=8)
